"""How the page looks, and the script that sorts and filters its table."""

STYLE = """
:root { color-scheme: light dark; --back: #fff; --panel: #f5f7f9; --text: #1b1f24; --soft: #57606a;
  --line: #d5dbe1; --blue: #0072b2; --right: #00704e; --wrong: #a64200; --alert: #fff0e4; }
@media screen and (prefers-color-scheme: dark) { :root { --back: #14171a; --panel: #1d2125;
  --text: #e6e9ec; --soft: #a4aeb8; --line: #363d45; --blue: #56b4e9; --right: #52c79d;
  --wrong: #f59b62; --alert: #3a2314; } }
* { box-sizing: border-box; }
body { max-width: 68rem; margin: 0 auto; padding: 2.5rem 1.25rem 3rem; background: var(--back);
  color: var(--text); font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { margin: 0 0 .75rem; font-size: 1.9rem; line-height: 1.2; text-wrap: balance; }
h2 { margin: 3.5rem 0 .75rem; font-size: 1.3rem; line-height: 1.3; }
h3 { margin: 0; font-size: 1.05rem; }
p { margin: .5rem 0; max-width: 46rem; }
a { color: var(--blue); }
nav a { margin-right: 1.25rem; white-space: nowrap; }
figcaption, caption, .small { color: var(--soft); font-size: .875rem; }
footer { margin-top: 2rem; }
.alert { margin: 0 0 1.5rem; padding: .75rem 1rem; background: var(--alert);
  border-left: .4rem solid var(--wrong); }
.alert strong { color: var(--wrong); font-size: 1.15rem; }
.alert p { margin: 0; }
dl { display: flex; flex-wrap: wrap; gap: 1px; margin: 1.75rem 0 1.25rem; background: var(--line);
  border: 1px solid var(--line); }
dl div { flex: 1 1 9.5rem; padding: .8rem 1rem; background: var(--panel); }
dt { font-size: .875rem; }
dd { margin: 0; color: var(--soft); font-size: .875rem; }
dd b { display: block; color: var(--text); font-size: 1.75rem; line-height: 1.25;
  font-variant-numeric: tabular-nums; }
.beside { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr));
  gap: 2.5rem 3rem; align-items: start; margin-top: 1.5rem; }
figure { margin: 0; min-width: 0; }
figcaption { margin-top: .4rem; }
.plot { position: relative; height: var(--height, 17rem); margin: 1.75rem .5rem 3.2rem 3.6rem; }
.plot svg { position: absolute; width: 100%; height: 100%; overflow: visible; }
.plot span { position: absolute; color: var(--soft); font-size: .8125rem; line-height: 1rem;
  white-space: nowrap; font-variant-numeric: tabular-nums; }
.plot .x { top: calc(100% + .3rem); transform: translateX(-50%); }
.plot .y { right: calc(100% + .4rem); transform: translateY(-50%); }
.plot .over { left: 0; top: -1.4rem; }
.plot .under { top: calc(100% + 1.5rem); right: 0; }
.plot:not(:last-of-type) { margin-bottom: 0; }
.plot:not(:last-of-type) :is(.x, .under) { display: none; }
svg * { fill: none; vector-effect: non-scaling-stroke; }
.grid { stroke: var(--line); stroke-width: 1; }
.main { stroke: var(--blue); stroke-width: 1.6; stroke-linejoin: round; }
.area { fill: var(--soft); fill-opacity: .25; }
.band { fill: var(--blue); fill-opacity: .3; }
.bar { stroke: var(--wrong); stroke-width: 3; stroke-linecap: round; }
.key { list-style: none; margin: .25rem 0 0; padding: 0; font-size: .875rem; }
.key li { padding-left: 2.1rem; text-indent: -2.1rem; }
.key svg { width: 1.6rem; height: .8rem; margin-right: .5rem; }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: .875rem;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .5rem; }
th, td { padding: .3rem .6rem .3rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
tbody th { padding-right: 1.5rem; font-weight: 400; color: var(--soft); }
.facts th { width: 1%; white-space: nowrap; }
.series { overflow-wrap: normal; }
.series :is(th, td) { vertical-align: middle; }
.series thead th { position: sticky; top: 0; z-index: 1; background: var(--back); }
.series bdi { display: inline-block; max-width: 14rem; overflow-wrap: break-word; }
.series td:last-child { width: 45%; }
.series td svg { display: block; width: 100%; min-width: 3.5rem; }
.series polyline { stroke: var(--blue); stroke-width: 1; }
.series i { display: block; height: 3px; background: var(--blue); }
.right { color: var(--right); }
.wrong { color: var(--wrong); font-weight: 600; }
.abstained { color: var(--soft); font-style: italic; }
.controls { display: flex; flex-wrap: wrap; gap: .5rem 1.25rem; align-items: center; margin: 1rem 0;
  font-size: .875rem; }
.controls label { max-width: 100%; }
select { max-width: 16rem; font: inherit; }
[role=button] { display: inline-block; cursor: pointer; white-space: nowrap; }
@media screen {
  [role=button]::after { content: " \\2195"; color: var(--soft); }
  [aria-sort=ascending] [role=button]::after { content: " \\2191"; color: inherit; }
  [aria-sort=descending] [role=button]::after { content: " \\2193"; color: inherit; } }
@media screen and (max-width: 44rem) {
  body { padding-top: 1.25rem; } h1 { font-size: 1.45rem; } .plot { margin-left: 3rem; }
  .facts th { width: 62%; white-space: normal; } .series { font-size: .8125rem; }
  .series thead th { position: static; } .series tbody th { padding-right: .6rem; }
  .series [role=button] { white-space: normal; }
  .series th:not([aria-sort]) [role=button]::after { content: none; } }
@media print {
  html { font-size: 9pt; } body { max-width: none; padding: 0; }
  nav, .controls { display: none !important; } h2 { margin-top: 2rem; break-after: avoid; }
  dl div { flex-basis: 7rem; } .beside { grid-template-columns: 1fr 1fr; gap: 1.5rem 2rem; }
  .plot { height: calc(.75 * var(--height, 17rem)); } .series thead th { position: static; }
  dl, figure, tr, .alert { break-inside: avoid; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""

# Headings become buttons that sort, and columns of names get a filter. Nothing is parsed as HTML.
SCRIPT = """
const table = document.querySelector(".series"), body = table.tBodies[0], rows = [...body.rows];
const controls = document.querySelector(".controls"), filters = [];
const heads = [...table.tHead.rows[0].cells].filter(head => head.dataset.sort);
const text = (row, column) => row.cells[column].textContent;
const number = t => t === "inf" ? Infinity : Number.isNaN(parseFloat(t)) ? -1 : parseFloat(t);
const order = {
  number: (a, b) => number(a) - number(b) || 0,
  text: (a, b) => a.localeCompare(b, undefined, {numeric: true}),
};
function show() {
  for (const row of rows)
    row.hidden = filters.some(([column, select]) =>
      select.selectedIndex > 0 && select.value !== text(row, column));
  const shown = rows.filter(row => !row.hidden).length;
  controls.querySelector("output").textContent = `${shown} of ${rows.length} series`;
}
heads.forEach((head, column) => {
  const compare = order[head.dataset.sort], button = document.createElement("span");
  button.role = "button";
  button.tabIndex = 0;
  button.append(...head.childNodes);
  button.onclick = () => {
    const sign = head.ariaSort === "ascending" ? -1 : 1;
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    body.append(...rows.sort((a, b) => sign * compare(text(a, column), text(b, column))));
  };
  button.onkeydown = event => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    button.click();
  };
  head.append(button);
  if (head.dataset.sort === "number") return;
  const label = document.createElement("label"), select = document.createElement("select");
  const values = [...new Set(rows.map(row => text(row, column)))].sort(order.text);
  for (const value of ["all", ...values])
    select.append(Object.assign(new Option(value, value), {dir: "auto"}));
  select.onchange = show;
  filters.push([column, select]);
  label.append(button.textContent + " ", select);
  controls.insertBefore(label, controls.lastElementChild);
});
controls.hidden = false;
show();
"""

ALERT = """<div class="alert" role="note"><strong>Not valid certificates</strong>
<p>Nothing proves that these radii hold: do not rely on them.</p></div>
"""
