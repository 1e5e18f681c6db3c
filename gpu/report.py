"""What the steps gave: report.json, replaced as a whole after each step, and report.md for people."""

import json
import os
import sys

# Lines of a log that the report shows where the step has printed no table.
TAIL = 30


class Report:
    def __init__(self, places, about):
        self.path, self.log = places.out / "report.json", places.log
        self.content = about | {"steps": {}}
        if self.path.exists():
            before = json.loads(self.path.read_text())
            for key in ("title", "bundle"):
                if before[key] != about[key]:
                    sys.exit(f"error: '{self.path}' is of another run ({key}: {before[key]}, now {about[key]}): give "
                             "another --out")
            self.content["steps"] = before["steps"]

    def has_ended(self, name):
        """True if the step has come to an end of its own, good or bad."""
        return self.content["steps"].get(name, {}).get("status") in ("passed", "failed")

    def all_passed(self, names):
        return all(self.content["steps"].get(name, {}).get("status") == "passed" for name in names)

    def add(self, phase, step, row):
        if row["status"] not in ("started", "not reached"):
            row["lines"] = self.lines(step.name)
        self.content["steps"][step.name] = {"phase": phase, "about": step.about, **row}
        self.replace(self.path, json.dumps(self.content, indent=1) + "\n")
        self.replace(self.path.with_suffix(".md"), self.markdown())

    def replace(self, path, text):
        new = path.with_name(path.name + ".new")
        with open(new, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)

    def lines(self, name):
        try:
            return self.log(name).read_text(errors="replace").splitlines()[-400:]
        except OSError:
            return []

    def markdown(self):
        machine, title = self.content["machine"], self.content["title"]
        warning = " No figure below is a measurement." if title == "dry run" else ""
        card = machine["card"] or "no GPU"
        head = [
            f"# Checks and measurements: {title}, {card}", "",
            f"{card}; driver and memory: {machine['driver'] or 'unknown'}; torch {machine['torch']}, CUDA {machine['cuda']}; "
            f"{machine['processor']}, {machine['cores']} cores; bundle {self.content['bundle']}.{warning}", "",
            "| step | phase | status | seconds | limit |", "|---|---|---|--:|--:|",
        ]
        for name, step in self.content["steps"].items():
            head.append(f"| {name} | {step['phase']} | {step['status']} | {step.get('seconds', '')} | {step.get('limit', '')} |")
        for name, step in self.content["steps"].items():
            lines = step.get("lines", [])
            tables = [line for line in lines if line.startswith("|")]
            # An empty line above the head of each.
            heads = [place for place, line in enumerate(tables) if line.startswith("|---") and place > 1]
            for place in reversed(heads):
                tables.insert(place - 1, "")
            head += ["", f"## {name}", "", step["about"], ""]
            if tables:
                head += [*tables, ""]
            if not tables or step["status"] != "passed":
                head += ["```text", *lines[-TAIL:], "```"]
        return "\n".join(head) + "\n"
