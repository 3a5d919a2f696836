"""The page's section on soft labels: test images, or windows of signals, beside what the teacher says about them."""

import base64
import html
import io

from PIL import Image
from torch import Tensor

from icckd.methods.kd import Kd, KdSettings
from icckd.report.examples import Examples
from icckd.report.reading import number
from icckd.report.results import Results, student_methods
from icckd.report.signal_chart import caption, signal_chart
from icckd.report.wording import images, unit

_EPSILON = 1e-7  # Added to the deviation when logits are standardised, as in icckd.functional.kd_kl.
_SHOWN_CLASSES = 4
_SMALL_PIXELS = 48
_LARGEST_PIXELS = 176


def soft_label_section(results: Results) -> str:
    """The section as HTML; a line that says so where the run has no examples."""
    heading = "<h2>What the teacher's soft labels look like</h2>"
    examples = results.examples
    if examples is None or len(examples.labels) == 0:
        return f'<section>{heading}\n<p class="quiet">This run holds no teacher/examples.safetensors.</p></section>'
    each = unit(results)
    cards = "\n".join(_card(results, examples, row) for row in range(len(examples.labels)))
    return f"""<section>{heading}
<p>Probabilities that the teacher gives {images(results)}: <span class="teacher">{_how(results)}</span>,
and as they are (T = 1). The first {each}s are typical of their classes; the last are those whose
second choice is strongest. The true class is in bold.{_drawing(examples)}</p>
<div class="grid">
{cards}
</div></section>"""


def _drawing(examples: Examples) -> str:
    return f" {caption(examples.images.shape[1])}" if examples.images.is_floating_point() else ""


def _card(results: Results, examples: Examples, row: int) -> str:
    label, place = int(examples.labels[row]), int(examples.indices[row])
    name, each = html.escape(results.classes[label]), unit(results)
    best = int(examples.logits[row].argmax())
    mistake = "" if best == label else f"<br>taken for {html.escape(results.classes[best])}"
    heads = "".join(f'<th scope="col">{head}</th>' for head in ("class", f"T = {_temperature(results):g}", "T = 1"))
    return f"""<figure class="example"><figcaption><strong>{name}</strong> {each} {place}{mistake}</figcaption>
{_picture(examples, row, f"{each.capitalize()} {place}, class {results.classes[label]}")}
<table><thead><tr>{heads}</tr></thead>
<tbody>{_probability_rows(results, examples.logits[row : row + 1], label)}</tbody></table></figure>"""


def _probability_rows(results: Results, logits: Tensor, label: int) -> str:
    """The most probable classes, the true one among them, and the sum of the others."""
    soft = softened(logits, _temperature(results), _standardized(results))[0]
    plain = softened(logits, 1.0)[0]
    shown = logits[0].argsort(descending=True, stable=True).tolist()[:_SHOWN_CLASSES]
    if label not in shown:
        shown[-1] = label
    rows = [
        _bars(results.classes[index], float(soft[index]), float(plain[index]), is_true=index == label)
        for index in shown
    ]
    rest = len(plain) - len(shown)
    if rest:
        name = "1 other" if rest == 1 else f"{rest} others"
        rows.append(_bars(name, float(1 - soft[shown].sum()), float(1 - plain[shown].sum()), is_true=False))
    return "".join(rows)


def _bars(name: str, softened: float, plain: float, is_true: bool) -> str:
    cells = "".join(
        f'<td>{_probability(value)}<span class="bar{kind}" style="width:{100 * max(value, 0):.1f}%"></span></td>'
        for value, kind in ((softened, " softened"), (plain, ""))
    )
    return f'<tr{" class=true" if is_true else ""}><th scope="row">{html.escape(name)}</th>{cells}</tr>'


def _probability(value: float) -> str:
    return f"{100 * value:.1f}%" if value >= 0.0005 else "&lt;0.1%"


def _picture(examples: Examples, row: int, description: str) -> str:
    image = examples.images[row]
    if not image.is_floating_point():
        return image_tag(image, description)
    by_channel = examples.images.transpose(0, 1).flatten(1)
    return signal_chart(image, by_channel.amin(1), by_channel.amax(1), description)


def image_tag(image: Tensor, description: str) -> str:
    """uint8 (C, H, W) as an <img>."""
    small = ' class="small"' if max(image.shape[1:]) <= _SMALL_PIXELS else ""
    return f'<img{small} src="{_data_uri(image)}" alt="{html.escape(description)}">'


def _data_uri(image: Tensor) -> str:
    """uint8 (C, H, W) as a PNG; three channels are red, green and blue, any other number is averaged to grey."""
    if len(image) == 3:
        picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    else:
        picture = Image.fromarray(image.float().mean(dim=0).round().byte().numpy())
    picture.thumbnail((_LARGEST_PIXELS, _LARGEST_PIXELS))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def softened(logits: Tensor, temperature: float, standardize: bool = False) -> Tensor:
    """softmax(logits / temperature) of every row of (N, C), in float64; the rows standardised first if wanted."""
    logits = logits.double()
    if standardize:
        mean, deviation = logits.mean(dim=1, keepdim=True), logits.std(dim=1, keepdim=True)
        logits = (logits - mean) / (deviation + _EPSILON)
    return (logits / temperature).softmax(dim=1)


def _how(results: Results) -> str:
    if not _by_kd(results):
        return f"softened at T = {_temperature(results):g}"
    how = f"softened at the distillation temperature T = {_temperature(results):g}"
    if _standardized(results):
        how += " after standardising the logits"
    return f"{how}, as the student sees them in training"


def _by_kd(results: Results) -> bool:
    return Kd.name in student_methods(results)


def _temperature(results: Results) -> float:
    value = number(results.settings.get("student.loss.kd.temperature"))
    return value if value is not None and value > 0 else KdSettings().temperature


def _standardized(results: Results) -> bool:
    return results.settings.get("student.loss.kd.standardize") is True
