"""The template of the report page (Jinja)."""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ r.name }} for {{ r.target }}</title>
<style>
:root { color-scheme: light dark; --ink: #1b1f24; --faint: #6b7480; --rule: #d7dce2; --paper: #fff; --mark: #2b6cb0;
        --pick: #c2410c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --faint: #98a2ae; --rule: #39424d; --paper: #14181d;
        --mark: #63a4e8; --pick: #fb923c; } }
body { font: 14px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
       max-width: 72rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin: 0 0 .3rem } h2 { font-size: 1.05rem; margin: 2rem 0 .5rem }
.faint { color: var(--faint) }
.facts { display: flex; flex-wrap: wrap; gap: .4rem 2rem; margin: 1rem 0 }
.facts b { display: block; font-size: 1.1rem; font-variant-numeric: tabular-nums }
.wide { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .2rem .6rem; border-bottom: 1px solid var(--rule); white-space: nowrap }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2), th:nth-child(3), td:nth-child(3) { text-align: left }
td.bar { background: linear-gradient(to left, color-mix(in srgb, var(--mark) 25%, transparent) var(--share),
         transparent var(--share)) }
tr.few td:nth-child(3) { color: var(--pick); font-weight: 600 }
.plots { display: flex; flex-wrap: wrap; gap: 2rem }
svg text { font-size: 11px; fill: var(--faint) } svg .title { fill: var(--ink); font-size: 12px }
svg .axis { stroke: var(--rule) } svg .front { fill: none; stroke: var(--mark); stroke-width: 1.5 }
svg .dot { fill: var(--mark) } svg .pick { fill: none; stroke: var(--pick); stroke-width: 2.5 }
</style>
</head>
<body>
<h1>{{ r.name }} for {{ r.target }}</h1>
<div class="faint">{{ r.machine }}, qcompile {{ r.tool_version }}, bits: {{ r.bits }}</div>
<div class="facts">
{% for label, value in (("weights, bytes", r.weights_bytes), ("code, bytes", r.code_bytes),
                        ("arena, bytes", r.arena_bytes), ("MACs", r.macs)) %}
<div><b>{{ "{:,}".format(value) }}</b>{{ label }}</div>
{% endfor %}
<div><b>{{ r.proof.float_instructions }}</b>float instructions</div>
{% if r.snr_db is not none %}<div><b>{{ r.snr_db }} dB</b>signal to noise, outputs</div>{% endif %}
{% for name, ratio in r.agreement_db.items() %}
<div><b>{{ "%.1f"|format(ratio) }} dB</b>signal to noise of {{ name }}, on {{ r.agreement_of }}</div>
{% endfor %}
{% if r.mixed %}
<div><b>{{ "%.1f"|format(100 * r.mixed.size) }} %</b>of the 8-bit weights</div>
<div><b>{{ "%.1f"|format(100 * r.mixed.latency) }} %</b>of the 8-bit layers' time</div>
<div><b>{{ "%.1f"|format(100 * r.mixed.bops) }} %</b>of the 8-bit bit operations</div>
<div><b>{{ "%.3g"|format(100 * r.mixed.measured_loss) }} %</b>of the output's energy lost</div>
{% endif %}
</div>
{% if r.agreement_db and r.agreement_of != "samples" %}
<p class="faint">Ranges and the outputs' signal to noise are of made-up inputs; give samples with --calib.</p>
{% endif %}
{% if r.mixed %}
<h2>What else could have been had</h2>
{% for cost, points in r.fronts.items() if points|length == 1 %}
<p>No choice needs less {{ cost }} than the one of least loss.</p>
{% endfor %}
{% endif %}
{% if plots %}
<p class="faint">Each point is the plan of least loss ({{ r.mixed.measure }}) for its cost, relative to 8 bits.
The ring is the plan that was compiled.</p>
<div class="plots">
{% for p in plots %}
<svg width="{{ p.w }}" height="{{ p.h }}" viewBox="0 0 {{ p.w }} {{ p.h }}" role="img"
     aria-label="loss against {{ p.title }}">
<text class="title" x="{{ p.m }}" y="16">loss, against {{ p.title }} relative to 8 bits</text>
<line class="axis" x1="{{ p.m }}" y1="{{ p.h - p.m }}" x2="{{ p.w - p.m }}" y2="{{ p.h - p.m }}"/>
<line class="axis" x1="{{ p.m }}" y1="{{ p.m }}" x2="{{ p.m }}" y2="{{ p.h - p.m }}"/>
{% for x, text in p.x %}<text x="{{ x }}" y="{{ p.h - p.m + 16 }}" text-anchor="middle">{{ text }}</text>{% endfor %}

{% for y, text in p.y %}<text x="{{ p.m - 6 }}" y="{{ y + 4 }}" text-anchor="end">{{ text }}</text>{% endfor %}

<polyline class="front" points="{{ p.line }}"/>
{% for d in p.points %}
<circle class="dot" cx="{{ d.at[0] }}" cy="{{ d.at[1] }}" r="3"><title>{{ d.text }}</title></circle>
{% endfor %}
{% if p.chosen %}<circle class="pick" cx="{{ p.chosen[0] }}" cy="{{ p.chosen[1] }}" r="6"/>{% endif %}
</svg>
{% endfor %}
</div>
{% endif %}
{% if r.layers %}
<h2>Layers</h2>
<div class="wide"><table>
<tr><th>layer</th><th>op</th><th>bits</th><th>weights</th><th>bytes</th><th>MACs</th><th>time, {{ r.time_unit }}</th>
<th>sensitivity</th><th>SNR, dB</th></tr>
{% for x in r.layers %}
<tr{% if x.weight_bits < 8 %} class="few"{% endif %}><td>{{ x.name }}</td><td>{{ x.op }}</td><td>{{ x.bits }}</td>
<td>{{ "{:,}".format(x.weights) }}</td>
<td class="bar" style="--share: {{ x|bar(r.layers) }}%">{{ "{:,}".format(x.bytes) }}</td>
<td>{{ "{:,}".format(x.macs) }}</td>
<td>{{ "" if x.time is none else "{:,.1f}".format(x.time) }}</td>
<td>{{ "" if x.sensitivity is none else "%.2g"|format(x.sensitivity) }}</td>
<td>{{ "" if x.snr_db is none else "%.1f"|format(x.snr_db) }}</td></tr>
{% endfor %}
</table></div>
{% endif %}
{% if r.notes %}
<h2>Notes</h2>
<ul>{% for n in r.notes %}<li>{{ n }}</li>{% endfor %}</ul>
{% endif %}
</body>
</html>
"""
