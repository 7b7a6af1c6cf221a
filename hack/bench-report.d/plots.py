"""Plots as SVG: bars of one part or several. Every number has a fixed form, so that the same figures give the same bytes."""

import html

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 720, 300, 70, 46, 40
COLOURS = ["#3465a4", "#f57900", "#cc0000", "#4e9a06", "#75507b"]


def text(x, y, content, anchor="middle", size=12):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{html.escape(content)}</text>'


def rect(x, y, width, height, fill):
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{fill}"/>'


def steps(most):
    """Values of the axis: about five, round ones."""
    step = 10 ** len(str(int(most))) / 10
    while most / step < 4:
        step /= 2
    return [n * step for n in range(int(most / step) + 1)]


def bars(title, groups):
    """A plot of bars. A group: label, parts as {name: value}, and the spread of the whole as (least, most) or None."""
    most = max([sum(parts.values()) for _, parts, _ in groups] + [spread[1] for *_, spread in groups if spread] + [1])
    height, names = HEIGHT - TOP - BOTTOM, list(dict.fromkeys(name for _, parts, _ in groups for name in parts))
    wide = (WIDTH - LEFT - 20) / len(groups)

    def y(value):
        return TOP + height * (1 - value / most)

    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
             ' font-family="sans-serif">',
             rect(0, 0, WIDTH, HEIGHT, "#ffffff"), text(WIDTH / 2, 16, title, size=14)]
    for value in steps(most):
        lines.append(rect(LEFT, y(value), WIDTH - LEFT - 20, 0.5, "#babdb6"))
        lines.append(text(LEFT - 6, y(value) + 4, f"{value:,.0f}", "end"))
    for at, (label, parts, spread) in enumerate(groups):
        middle, below = LEFT + wide * (at + 0.5), 0
        for name, value in parts.items():
            lines.append(rect(middle - wide * 0.3, y(below + value), wide * 0.6, y(below) - y(below + value),
                              COLOURS[names.index(name) % len(COLOURS)]))
            below += value
        if spread:
            lines.append(rect(middle - 1, y(spread[1]), 2, y(spread[0]) - y(spread[1]), "#2e3436"))
        lines.append(text(middle, HEIGHT - BOTTOM + 18, label))
    for at, name in enumerate(names if len(names) > 1 else ()):
        lines.append(rect(LEFT + at * 120, 24, 10, 10, COLOURS[at % len(COLOURS)]))
        lines.append(text(LEFT + at * 120 + 15, 33, name, "start"))
    return "\n".join([*lines, "</svg>", ""])
