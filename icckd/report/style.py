"""The style sheet of report.html: light, dark, narrow, and on paper."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --ink: #1d2330; --quiet: #586174; --faint: #dfe3ea; --panel: #f5f7fa;
  --teacher: #0b66b5; --student: #c4510a;
  --series-1: #0b66b5; --series-2: #c4510a; --series-3: #007f5c;
  --series-4: #8a4fc9; --series-5: #b3235f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171d; --ink: #e6e9ef; --quiet: #a3acbb; --faint: #333a46; --panel: #1d222b;
    --teacher: #6cb6ff; --student: #ffa657;
    --series-1: #6cb6ff; --series-2: #ffa657; --series-3: #4fd1a5;
    --series-4: #c8a2ff; --series-5: #ff8fb5;
  }
}
* { box-sizing: border-box; stroke-linejoin: round; }
body { margin: 0; background: var(--page); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
main { max-width: 64rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: 1.65rem; line-height: 1.2; margin: 0.5rem 0 0.25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 0.25rem; }
h3 { font-size: 1rem; margin: 0 0 0.25rem; }
p { margin: 0.5rem 0; max-width: 46rem; text-wrap: pretty; }
.quiet, .meaning, figcaption, caption { color: var(--quiet); }
.notes { font-size: 0.9rem; padding-left: 1.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-size: 0.9rem; padding-bottom: 0.25rem; }
th, td { padding: 0.3rem 0.6rem; text-align: left; vertical-align: top; }
th { font-weight: 600; }
tbody tr { border-top: 1px solid var(--faint); }
th:first-child, td:first-child { padding-left: 0; }
.number { text-align: right; white-space: nowrap; }
.main-numbers { margin: 1rem 0; width: 100%; max-width: 46rem; }
.main-numbers th.number { min-width: 8rem; }
.main-numbers td { font-size: 1.05rem; }
.meaning { display: block; font-size: 0.85rem; font-weight: 400; white-space: normal; overflow-wrap: anywhere; }
.teacher { color: var(--teacher); }
.student { color: var(--student); }
.grid { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fill, minmax(min(18rem, 100%), 1fr)); }
figure { margin: 0; break-inside: avoid; }
figure svg { display: block; width: 100%; height: auto; }
figure svg text { font-family: inherit !important; }
figcaption { font-size: 0.85rem; }
.example { display: grid; grid-template-columns: auto 1fr; gap: 0.5rem 0.9rem; padding: 0.8rem;
  align-content: start; background: var(--panel); border-radius: 0.5rem; }
.example img { order: -1; width: 5rem; height: 5rem; object-fit: contain; background: #808080; }
.example .signal { grid-column: 1 / -1; }
.signal polyline { fill: none; stroke: currentColor; stroke-width: 1.2; }
.example img.small { image-rendering: pixelated; }
.example strong { display: block; font-size: 1rem; color: var(--ink); overflow-wrap: anywhere; }
.example table { order: 1; grid-column: 1 / -1; width: 100%; table-layout: fixed; }
.example table { font-size: 0.85rem; line-height: 1.3; }
.example th, .example td { padding: 0.1rem 0.25rem; border: 0; }
.example th:first-child { width: 44%; padding-left: 0; overflow-wrap: anywhere; font-weight: 400; }
.example thead th { color: var(--quiet); font-weight: 400; }
.example tr { border: 0; }
.example td { white-space: nowrap; }
.example tr.true th { font-weight: 700; }
.made td { text-align: center; }
.made img { width: 3rem; height: 3rem; object-fit: contain; background: #808080; }
.made img.small { image-rendering: pixelated; }
.made th { overflow-wrap: anywhere; }
.bar { display: block; height: 0.3rem; min-width: 1px; margin-bottom: 0.3rem; background: var(--quiet); }
.bar.softened { background: var(--teacher); }
.classes { width: 100%; max-width: 46rem; font-size: 0.9rem; }
.classes th:first-child { width: 28%; overflow-wrap: anywhere; font-weight: 400; }
.classes td:nth-child(2) { width: 36%; }
.classes thead th { vertical-align: bottom; }
.classes thead th:first-child { overflow-wrap: normal; }
.classes thead .number { white-space: normal; }
.hidden th:first-child { width: 38%; }
.hidden td .scale { font-size: 0.8rem; }
.track { position: relative; display: block; height: 1.2rem; margin: 0 0.5rem; min-width: 5rem;
  background: linear-gradient(var(--faint), var(--faint)) center / 100% 1px no-repeat; }
.dot { position: absolute; top: 0.25rem; width: 0.7rem; height: 0.7rem; margin-left: -0.35rem; }
.dot.teacher { transform: scale(0.75); border-radius: 50%; background: var(--teacher); }
.dot.student { border: 2px solid var(--student); transform: rotate(45deg); }
.scale { display: flex; justify-content: space-between; margin: 0 0.5rem; font-weight: 400; }
details { margin: 0.75rem 0; }
summary { cursor: pointer; font-weight: 600; }
.pairs { font-size: 0.9rem; overflow-wrap: anywhere; }
.changed { font-weight: 600; }
.pair { display: grid; gap: 0.5rem 2rem; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr));
  align-items: start; margin-bottom: 1.75rem; }
.findings { padding-left: 1.2rem; margin: 0.25rem 0 1rem; max-width: 46rem; }
.findings li { margin: 0.3rem 0; overflow-wrap: anywhere; }
.intervals { width: 100%; max-width: 46rem; font-size: 0.9rem; margin: 0.5rem 0 1.5rem; }
.intervals th:first-child { width: 20%; overflow-wrap: anywhere; }
.intervals td:nth-child(2), .intervals thead th:nth-child(2) { padding: 0; min-width: 6rem; }
.intervals .number { width: 1%; }
.intervals .meaning { white-space: nowrap; }
.interval { display: block; width: 100%; height: 3.25rem; }
.pair figure { max-width: 27rem; }
.interval.axis { height: 1.5rem; overflow: visible; fill: var(--quiet); font-size: 0.8rem; font-weight: 400; }
.interval .tick { stroke: var(--faint); }
.interval .zero { stroke: var(--ink); }
.interval .seed { fill: currentColor; fill-opacity: 0.45; }
.interval .range { stroke: currentColor; stroke-width: 2; }
.interval .mean { fill: currentColor; }
.ink { color: var(--ink); }
.series-1 { color: var(--series-1); }
.series-2 { color: var(--series-2); }
.series-3 { color: var(--series-3); }
.series-4 { color: var(--series-4); }
.series-5 { color: var(--series-5); }
.every { font-size: 0.9rem; margin: 0.5rem 0 1rem; }
.every th, .every td { padding: 0.12rem 0.7rem 0.12rem 0; }
.every thead .number { white-space: normal; vertical-align: bottom; min-width: 5.5rem; }
.every th[scope=row] { font-weight: 400; white-space: nowrap; }
.groups .interval { margin: 0.35rem 0; }
.groups th { font-weight: 400; vertical-align: middle; }
.groups th:first-child, .groups td:first-child { width: 30%; }
.legend { display: flex; flex-wrap: wrap; gap: 0.1rem 1.2rem; padding: 0; margin: 0.5rem 0; list-style: none;
  font-size: 0.9rem; }
.legend li::before { content: "●"; margin-right: 0.35rem; }
.scroll { overflow-x: auto; }
.runs { font-size: 0.9rem; }
a { color: var(--teacher); }
@media (max-width: 32rem) {
  main { padding: 1rem 0.9rem 3rem; }
  th, td { padding: 0.3rem; }
  .number { font-size: 0.95rem; }
  .main-numbers th.number { min-width: 6.8rem; }
  .intervals, .intervals thead, .intervals tbody, .intervals caption { display: block; }
  .intervals tr { display: grid; grid-template-columns: minmax(9rem, 2fr) 1fr 1fr; }
  .intervals th:first-child, .intervals :nth-child(2):not(svg *) { grid-column: 1 / -1; width: auto; }
  .intervals thead th:first-child { display: none; }
  .intervals thead th:nth-child(2) { order: 1; }
  .intervals .number { width: auto; }
}
@media print {
  :root { --page: #fff; --ink: #000; --quiet: #444; --faint: #ccc; --panel: #fff;
    --teacher: #0b66b5; --student: #c4510a;
    --series-1: #0b66b5; --series-2: #c4510a; --series-3: #007f5c;
    --series-4: #8a4fc9; --series-5: #b3235f; }
  html { font-size: 11px; }
  h2, h3 { break-after: avoid; }
  .intervals { break-inside: avoid; }
  .bar, .dot, .example img, .made img { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
