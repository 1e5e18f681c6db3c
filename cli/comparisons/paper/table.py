"""The results as Markdown."""

BEGIN, END = "<!-- written by `make paper` -->", "<!-- until here -->"


def percent(value):
    return f"{100 * value:.1f}"


def weights(count):
    return f"{count:,}"


def row(cells):
    return "| " + " | ".join(cells) + " |"


def over_seeds(made, value):
    """All values, one for each seed."""
    return " / ".join(value(one) for one in made)


def methods(before, chosen):
    """`chosen`: a list of runs, one for each seed, for each method, the best method first."""
    lines = [
        "| | weights that train | lr | exact match, % | caption loss | loss on plain English | seconds | memory, GB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
        row(["connector of the first stage", "–", "–", percent(before.exact), f"{before.caption:.3f}",
             f"{before.english:.3f}", "–", "–"]),
    ]
    for made in chosen:
        first = made[0]
        memory = "–" if first.cost.memory is None else f"{first.cost.memory:.2f}"
        lines.append(row([
            first.method, weights(first.cost.weights), f"{first.rate:.0e}",
            over_seeds(made, lambda one: percent(one.scores.exact)),
            over_seeds(made, lambda one: f"{one.scores.caption:.3f}"),
            over_seeds(made, lambda one: f"{one.scores.english:.3f}"),
            f"{first.cost.seconds:.0f}", memory,
        ]))
    return lines


def kinds(runs):
    lines = ["| data | exact match, % | caption loss | loss on plain English |", "|---|---:|---:|---:|"]
    for made in runs:
        name = "all three" if len(made.kinds) > 1 else made.kinds[0]
        losses = [f"{made.scores.caption:.3f}", f"{made.scores.english:.3f}"]
        lines.append(row([name, percent(made.scores.exact), *losses]))
    return lines


def asked(before, chosen):
    """Exact match by the first words of a question."""
    names = sorted(before.counts)
    lines = [row(["", *(f"{name} …" for name in names)]), "|---|" + "---:|" * len(names)]
    share = lambda counts: [percent(counts[name][0] / counts[name][1]) for name in names]  # noqa: E731
    lines.append(row(["connector of the first stage", *share(before.counts)]))
    return lines + [row([made[0].method, *share(made[0].scores.counts)]) for made in chosen]


def rates(tried):
    lines = ["| | right at each rate, % |", "|---|---|"]
    for runs in tried:
        at = ", ".join(f"{percent(made.chosen)} at {made.rate:.0e}" for made in runs)
        lines.append(row([runs[0].method, at]))
    return lines


def put(path, lines):
    """Replaces what stands between the marks; a file that is not there has nothing else."""
    text = path.read_text(encoding="utf-8") if path.exists() else f"{BEGIN}{END}\n"
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    path.write_text(head + "\n".join([BEGIN, "", *lines, "", END]) + tail, encoding="utf-8")
