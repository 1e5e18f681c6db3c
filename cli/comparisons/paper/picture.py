"""The results as a picture: bars of exact match, and of what plain English lost."""

WIDTH, ROW, LEFT, PANEL = 860, 34, 210, 270
COLOURS = {"exact": "#3c8c50", "english": "#c83c32"}


def text(x, y, words, anchor="start", size=13):
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" font-size="{size}">{words}</text>'


def bar(x, y, width, colour):
    return f'<rect x="{x:.0f}" y="{y - 9:.0f}" width="{max(width, 1):.0f}" height="18" fill="{colour}"/>'


def draw(path, before, chosen):
    """`chosen`: a list of runs, one for each seed, for each method; a bar shows their mean, and a line each of them."""
    height = 90 + ROW * len(chosen)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        text(LEFT, 30, "Held-out questions answered to the letter, %", size=15),
        text(LEFT + PANEL + 80, 30, "Rise of the loss on plain English", size=15),
    ]
    lost = [[made.scores.english - before.english for made in runs] for runs in chosen]
    exact = [[100 * made.scores.exact for made in runs] for runs in chosen]
    panels = [
        (LEFT, exact, 100, COLOURS["exact"], "{:.1f}"),
        (LEFT + PANEL + 80, lost, max(0.1, *map(max, lost)), COLOURS["english"], "{:+.2f}"),
    ]
    for place, runs in enumerate(chosen):
        y = 64 + ROW * place
        parts.append(text(LEFT - 10, y + 4, runs[0].method, "end"))
        for left, values, most, colour, style in panels:
            at = lambda value: (PANEL - 50) * max(value, 0) / most  # noqa: E731, B023
            mean = sum(values[place]) / len(values[place])
            parts.append(bar(left, y, at(mean), colour))
            for value in values[place][1:] and values[place]:
                parts.append(f'<path d="M{left + at(value):.1f} {y - 12} v24" stroke="black" stroke-width="1.5"/>')
            parts.append(text(left + at(max(values[place])) + 6, y + 4, style.format(mean)))
    x = LEFT + (PANEL - 50) * before.exact
    parts.append(f'<path d="M{x:.1f} 46 V{height - 30}" stroke="black" stroke-dasharray="4 3"/>')
    parts.append(text(x, height - 12, "connector of the first stage", "middle", 11))
    path.write_text("\n".join([*parts, "</svg>", ""]), encoding="utf-8")
