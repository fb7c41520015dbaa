"""How the page of a report looks: on light and dark grounds, on wide screens, phones and paper."""

from nas.reporting.svg import DARK

STYLE = (
    """
:root{color-scheme:light dark;--ground:#f3f5f8;--card:#ffffff;--ink:#1c2330;--faint:#5b6472;--line:#dde1e7;--link:#1f5fae;
--note:#fff4d6}
@media (prefers-color-scheme: dark){:root{--ground:#0d1015;--card:#14181f;--ink:#e6e9ee;--faint:#a3adba;--line:#2c333d;
--link:#7db4f5;--note:#3a3114}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
header,nav,main,footer{max-width:1280px;margin:0 auto;padding:0 16px}
h1{font-size:1.6rem;margin:24px 0 12px;overflow-wrap:anywhere}
h2{font-size:1.3rem;margin:28px 0 12px;overflow-wrap:anywhere}
h2:first-child{margin-top:0}
h3{font-size:1.1rem;margin:28px 0 10px}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:20px;margin:0 0 20px}
nav ul{display:flex;flex-wrap:wrap;gap:6px 18px;list-style:none;margin:0 0 16px;padding:0}
a{color:var(--link);overflow-wrap:anywhere}
a:focus-visible,summary:focus-visible,.scroll:focus-visible,pre:focus-visible{outline:3px solid var(--link);outline-offset:2px}
.jump{position:absolute;left:-9999px}
.jump:focus{left:8px;top:8px;background:var(--card);padding:8px 12px;border-radius:6px;z-index:1}
.note{background:var(--note);border-radius:6px;padding:8px 12px;margin:0 0 14px}
.scroll{overflow-x:auto;margin:0 0 12px}
table{border-collapse:collapse;font-size:.92rem}
caption{text-align:left;font-weight:600;padding:0 0 6px}
th,td{text-align:left;vertical-align:top;padding:4px 18px 4px 0;border-bottom:1px solid var(--line)}
td{overflow-wrap:break-word;max-width:36em;font-variant-numeric:tabular-nums}
thead th,td{min-width:5.5em}
tbody th{font-weight:400;color:var(--faint)}
.unseen{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
details{margin:0 0 12px}
summary{cursor:pointer;padding:4px 0;color:var(--link)}
pre{overflow-x:auto;background:var(--ground);border:1px solid var(--line);border-radius:6px;padding:10px 12px;font-size:.85rem;
max-height:32em;margin:0 0 12px}
figure{margin:0}
figcaption{color:var(--faint);font-size:.9rem;overflow-wrap:anywhere}
svg{max-width:100%;height:auto;display:block}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,360px),1fr));gap:12px 20px}
.maps{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,270px),1fr));gap:6px 16px;align-items:start}
.pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr));gap:20px;align-items:start}
.narrow{display:none}
@media (max-width: 800px){.wide{display:none}.narrow{display:block}section{padding:14px}}
footer{color:var(--faint);font-size:.85rem;padding-bottom:24px}
@media print{body{background:none}section{border:none;padding:0}.jump,nav{display:none}}
""".strip()
    + DARK
)
