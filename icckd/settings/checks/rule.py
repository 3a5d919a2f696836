"""What a rule of a setting is."""

from typing import Any

# A setting's name and value, whether it is right, and what would be.
SettingRule = tuple[str, Any, bool, str]
