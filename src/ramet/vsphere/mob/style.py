"""The one style sheet of the pages, and the policy that lets nothing but it in."""

from __future__ import annotations

import base64
import hashlib

__all__ = ["POLICY", "STYLE"]

STYLE = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--ink:#1b2330;--soft:#5c6675;--line:#dfe3ea;--head:#eef1f5;
--link:#0b5cad;--accent:#0b6e4f;--good:#0a6b3d;--goodbg:#dff3e7;--bad:#a3232c;--badbg:#fde8e8;--busy:#7a4b00;
--busybg:#fdf0d5;--top:#16324a;--topink:#eaf2f8}
@media (prefers-color-scheme:dark){:root{--bg:#11161d;--card:#19202a;--ink:#e3e8ef;--soft:#98a4b3;--line:#2c3644;
--head:#202a36;--link:#7cb8f2;--accent:#5fcf9f;--good:#7fdcaa;--goodbg:#12352a;--bad:#ff9b9b;--badbg:#3d1b1f;
--busy:#f4c878;--busybg:#3a2c10;--top:#0c1a27;--topink:#dbe8f3}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
a{color:var(--link);text-decoration-thickness:1px;text-underline-offset:2px}
a:focus-visible,button:focus-visible,input:focus-visible,textarea:focus-visible,select:focus-visible,
summary:focus-visible{outline:3px solid var(--link);outline-offset:2px;border-radius:4px}
.skip{position:absolute;left:-99em}.skip:focus{left:1em;top:.6em;background:var(--card);padding:.4em .8em;z-index:2}
header{background:var(--top);color:var(--topink)}
.bar{max-width:76rem;margin:0 auto;padding:.6rem 1.25rem;display:flex;gap:1.25rem;align-items:center;flex-wrap:wrap}
.bar a{color:inherit}.brand{font-weight:650;text-decoration:none;letter-spacing:.01em}.grow{flex:1}
.bar form{display:flex;gap:.4rem}
.bar input{width:14rem;background:#ffffff14;color:inherit;border:1px solid #ffffff40}
.bar input::placeholder{color:#c8d6e2}
.bar button{background:#ffffff1f;color:inherit;border:1px solid #ffffff40}
main{max-width:76rem;margin:0 auto;padding:1rem 1.25rem 3rem}
nav.crumbs{font-size:.9rem;color:var(--soft);margin:.2rem 0 .9rem}
nav.crumbs ol{list-style:none;display:flex;flex-wrap:wrap;gap:.1rem .5rem;margin:0;padding:0}
nav.crumbs li+li::before{content:"\\203a";margin-right:.5rem;color:var(--soft)}
h1{font-size:1.5rem;line-height:1.25;margin:0 0 .15rem;overflow-wrap:anywhere}
h2{font-size:1.05rem;margin:1.8rem 0 .55rem}
.sub{color:var(--soft);margin:0 0 .6rem}
.quick{display:flex;flex-wrap:wrap;gap:.4rem .5rem;margin:.2rem 0 1rem;padding:0;list-style:none}
.quick a{display:block;padding:.2rem .7rem;border:1px solid var(--line);border-radius:99px;background:var(--card);
text-decoration:none;font-size:.9rem}.quick a:hover{border-color:var(--link)}
.card{background:var(--card);border:1px solid var(--line);border-radius:8px;overflow-x:auto}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;vertical-align:top;padding:.42rem .8rem;border-top:1px solid var(--line)}
thead th{border-top:0;background:var(--head);font-size:.74rem;letter-spacing:.06em;color:var(--soft);font-weight:650}
tbody th{font-weight:550;white-space:nowrap}
td.type{color:var(--soft);font-size:.86rem;overflow-wrap:anywhere;min-width:15rem}
td.value{overflow-wrap:anywhere;width:58%}
td table{margin:.1rem 0}
td.value ul{margin:0;padding:0;list-style:none}.soft{color:var(--soft)}
.unset{color:var(--soft);font-style:italic;font-family:inherit}
pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:0;font:inherit}
details{margin-top:1rem}summary{cursor:pointer;color:var(--soft);padding:.2rem 0}
.badge{display:inline-block;padding:.05rem .55rem;border-radius:99px;font-size:.8rem;font-weight:600;
background:var(--head);color:var(--soft);font-family:system-ui,sans-serif}
.good{background:var(--goodbg);color:var(--good)}.bad{background:var(--badbg);color:var(--bad)}
.busy{background:var(--busybg);color:var(--busy)}
.note{border:1px solid var(--line);border-left:4px solid var(--soft);border-radius:8px;background:var(--card);
padding:.8rem 1rem;margin:1rem 0}
.note.good,.note.bad,.note.busy{color:var(--ink)}
.note.good{border-left-color:var(--good)}.note.bad{border-left-color:var(--bad)}.note.busy{border-left-color:var(--busy)}
.note h2{margin:0 0 .4rem}.note p{margin:.2rem 0}.note .card{margin-top:.7rem}
progress{width:14rem;accent-color:var(--accent)}
input,select,textarea,button{font:inherit;color:var(--ink);background:var(--card);border:1px solid var(--line);
border-radius:6px;padding:.35rem .6rem;max-width:100%}
input:not([type=hidden]),textarea{width:100%}textarea{resize:vertical;tab-size:2}
input::placeholder,textarea::placeholder{color:var(--soft);opacity:.85}
code,textarea,td.value{font-family:ui-monospace,"Cascadia Mono","DejaVu Sans Mono",Menlo,monospace;font-size:.87rem}
tr.empty th{font-weight:400;color:var(--soft)}
label{font-weight:600}.req{color:var(--bad);font-weight:600;font-size:.8rem}.opt{color:var(--soft);font-size:.8rem}
button.go{background:var(--accent);border-color:var(--accent);color:#fff;font-weight:600;padding:.5rem 1.2rem;
cursor:pointer}
@media (prefers-color-scheme:dark){button.go{color:#0b1a14}}
.actions{display:flex;gap:1rem;align-items:center;padding:.8rem 0}
td.field{width:62%}
footer{color:var(--soft);font-size:.85rem;max-width:76rem;margin:0 auto;padding:0 1.25rem 2rem}
@media (max-width:46rem){td.type{display:none}th.type{display:none}tbody th{white-space:normal}.bar input{width:9rem}}
"""

_DIGEST = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()

POLICY = (
    f"default-src 'none'; style-src 'sha256-{_DIGEST}'; img-src data:; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
