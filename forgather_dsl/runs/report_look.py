"""How a report looks in a browser, and the script that shows values under the pointer; without it nothing is lost but those."""

from __future__ import annotations

from .chart import COLORS

__all__ = ["FRAGMENT_STYLE", "SCRIPT", "STYLE", "shown"]

_LIGHT = ("#0b62c4", "#d1570c", "#1a7f37", "#8250df", "#c2185b", "#0e7c86", "#9a6700", "#5c6b0f", "#b3261e", "#546e7a")
_DARK = ("#6cb0ff", "#ff9d5c", "#4cc38a", "#b795ff", "#ff80ab", "#4dd0d8", "#e0b35a", "#c3cf5a", "#ff8a80", "#9fb3bf")
assert len(_LIGHT) == len(_DARK) == COLORS


def _colors(dark: bool) -> str:
    names = [f"--s{i}:{color}" for i, color in enumerate(_DARK if dark else _LIGHT)]
    return ";".join(names)


FRAGMENT_STYLE = (
    f".fgr{{{_colors(False)};--sb:var(--ink,#1f2328);--cg:var(--line,#d1d9e0);--ct:var(--faint,#59636e)}}"
    f"@media(prefers-color-scheme:dark){{.fgr{{{_colors(True)};--sb:var(--ink,#e6edf3);--cg:var(--line,#30363d);--ct:var(--faint,#9198a1)}}}}"
    + "".join(f".fgr .s{i}{{color:var(--s{i})}}" for i in range(COLORS))
    + """
.fgr .sb{color:var(--sb)}
.fgr .chart{width:100%;min-width:440px;max-width:900px;height:auto;display:block;font:11px system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif}
.fgr .chart .rule{stroke:var(--cg);stroke-width:1;fill:none}.fgr .chart .zero{stroke:var(--ct);stroke-width:1.4;fill:none}
.fgr .chart text{fill:var(--ct)}.fgr .chart .axis{text-anchor:middle;font-size:12px}.fgr .chart .mid{text-anchor:middle}
.fgr .chart .end{text-anchor:end}.fgr .chart .name{fill:var(--sb);font-size:12.5px}
.fgr .line{fill:none;stroke:currentColor;stroke-width:1.8;stroke-linejoin:round}.fgr .sb .line{stroke-width:2.4}
.fgr .band{fill:currentColor;fill-opacity:.14;stroke:none}.fgr .dot{fill:currentColor}
.fgr .v{color:var(--ct)}.fgr .v.better{color:var(--good,#1a7f37)}.fgr .v.worse{color:var(--bad,#cf222e)}
.fgr .whisker{stroke:currentColor;stroke-width:2.2;fill:none}
"""
)
STYLE = """
body{max-width:1180px}
.controls{display:flex;flex-wrap:wrap;gap:6px 18px;align-items:center;margin:10px 0;font-size:13.5px;color:var(--faint)}
.controls fieldset{border:0;padding:0;margin:0;display:flex;flex-wrap:wrap;gap:4px 12px}.controls label{cursor:pointer;color:var(--ink)}
.legend{margin:6px 0 12px;display:flex;flex-wrap:wrap;gap:3px 16px;font-size:13.5px}.legend label{cursor:pointer;white-space:nowrap}
.swatch{display:inline-block;width:18px;height:0;border-top:3px solid currentColor;vertical-align:middle;margin:0 5px 2px 2px}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,520px),1fr));gap:0 24px}
.figure{position:relative;overflow-x:auto;margin:0 0 10px;min-width:0}.figure h3{font-size:14px;margin:16px 0 4px}.figure h3 span{font-weight:400;font-size:12.5px}
.chart.multi{display:none}
.wide{overflow-x:auto}td.verdict,td.verdict *{text-align:left;font-weight:600;margin:0}
td.better{color:var(--good)}td.worse{color:var(--bad)}td.noise,td.identical,td.unknown{color:var(--faint)}td.diverged,td.apart{color:var(--bad)}
.mind{border-left:4px solid #bf8700;background:var(--soft);padding:8px 16px;border-radius:0 8px 8px 0;margin:18px 0}
.mind ul{margin:2px 0}.mind li,td.path{overflow-wrap:anywhere}
details{margin:10px 0}summary{cursor:pointer;font-weight:600}
pre{white-space:pre-wrap;overflow-wrap:anywhere;max-height:340px}
#tip{position:fixed;pointer-events:none;background:var(--ground);border:1px solid var(--line);border-radius:6px;padding:6px 10px;
font-size:12.5px;box-shadow:0 2px 8px #0003;display:none;z-index:9;font-variant-numeric:tabular-nums;max-width:340px}
#tip div{display:flex;justify-content:space-between;gap:14px;white-space:nowrap}
@media(max-width:700px){body{padding:16px 14px 40px}}
@media print{.controls,details summary{display:none}}
"""


def shown(num_groups: int) -> str:
    """Rules that show the chosen axes and hide the groups that are not ticked: no script is needed for either."""
    rules = [
        f"body:has(#x{axis}:checked):has(#{scale}:checked) .chart.x{axis}.{scale}{{display:block}}"
        for axis in range(3)
        for scale in ("linear", "log")
    ]
    rules += [f"body:has(#g{i}:not(:checked)) .chart .g{i}{{display:none}}" for i in range(num_groups)]
    rules.append("@supports not selector(:has(a)){.chart.x0.linear{display:block}}")
    return "".join(rules)


SCRIPT = """
const tip=document.getElementById('tip'),show=v=>Math.abs(v)>=1e4||v&&Math.abs(v)<1e-3?v.toExponential(3):String(+v.toPrecision(5));
function read(chart,event){
 const box=chart.getBoundingClientRect(),width=chart.viewBox.baseVal.width,px=(event.clientX-box.left)*width/box.width;
 const [x0,x1,y0,y1]=chart.dataset.frame.split(' ').map(Number),log=chart.dataset.log==='1';
 const back=(p,a,b,data)=>{const [lo,hi]=data.split(' ').map(Number),t=(p-a)/(b-a);return log?lo*Math.pow(hi/lo,t):lo+t*(hi-lo)};
 const rows=[];let at=null;
 for(const group of chart.querySelectorAll('g')){
  if(getComputedStyle(group).display==='none')continue;
  let best=null;
  for(const point of group.querySelector('polyline').points){if(!best||Math.abs(point.x-px)<Math.abs(best.x-px))best={x:point.x,y:point.y}}
  if(!best||Math.abs(best.x-px)>60)continue;
  if(at===null||Math.abs(best.x-px)<Math.abs(at-px))at=best.x;
  rows.push({name:group.querySelector('title').textContent,color:getComputedStyle(group).color,value:back(best.y,y0,y1,chart.dataset.y)});
 }
 if(at===null||px<x0||px>x1){tip.style.display='none';return}
 tip.replaceChildren();
 const head=document.createElement('div');head.textContent=(+back(at,x0,x1,chart.dataset.x).toPrecision(5)).toLocaleString('en');tip.append(head);
 rows.sort((a,b)=>b.value-a.value);
 for(const row of rows.slice(0,24)){
  const line=document.createElement('div'),name=document.createElement('span'),value=document.createElement('b');
  name.textContent=row.name;name.style.color=row.color;value.textContent=show(row.value);line.append(name,value);tip.append(line);
 }
 tip.style.display='block';
 tip.style.left=Math.min(event.clientX+16,innerWidth-tip.offsetWidth-8)+'px';tip.style.top=Math.min(event.clientY+12,innerHeight-tip.offsetHeight-8)+'px';
}
for(const chart of document.querySelectorAll('.chart[data-x]')){
 chart.addEventListener('pointermove',event=>read(chart,event));
 chart.addEventListener('pointerleave',()=>{tip.style.display='none'});
}
"""
