"""The head of a page of HTML that is one file: inert, and nothing is asked of any server.

Its content security policy forbids scripts and requests; pictures are data URIs.
"""

from string import Template

HEAD = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>$name</title>
<style>
:root { color-scheme: light dark; --ink: #1b1e26; --muted: #5d6472; --page: #fbfbfd;
  --line: #d9dce3; --link: #1f56b0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaf0; --muted: #9ba1ae; --page: #0f1115; --line: #2b303b; --link: #86b3ff; } }
body { margin: 0 auto; padding: 2rem 1.5rem; max-width: 82rem; background: var(--page);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 0; font-family: ui-monospace, monospace;
  overflow-wrap: anywhere; }
p { margin: .2rem 0 1rem; color: var(--muted); max-width: 60rem; }
a { color: var(--link); }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: 1rem 0;
  font: .85rem ui-monospace, monospace; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .15rem .9rem .15rem 0; border-bottom: 1px solid var(--line); text-align: left; }
.wall { display: grid; gap: 1.2rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 19.5rem), 1fr)); }
figure { margin: 0; }
figcaption { font-size: .8rem; color: var(--muted); overflow-wrap: anywhere; }
img { display: block; max-width: 100%; height: auto; border-radius: 3px; }
pre { overflow-x: auto; font-size: .8rem; }
</style>
</head>
<body>
""")
"""``name``: its title, escaped."""

FOOT = "</body>\n</html>\n"
