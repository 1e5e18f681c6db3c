"""All rows of the comparison, made from seeds."""

import random

import english
import questions
import rows
import scenes
import tower


class Data:
    def __init__(self, tokenizer, sizes):
        self.tokenizer, self.sizes = tokenizer, sizes
        new = lambda count, seed: scenes.make("t10k", 10_000, count, seed)  # noqa: E731
        self.captions = self.of_detail(scenes.make("train", tower.CLOTHES, sizes.captions, "captions"))
        self.chosen_on = rows.held_out(tokenizer, new(sizes.chosen_on, "chosen on"))
        self.asked = rows.held_out(tokenizer, new(sizes.asked, "asked"))
        self.described = self.of_detail(new(sizes.described, "described"))
        self.english = english.held_out(tokenizer, sizes.paragraphs)

    def of_detail(self, made):
        return [rows.row(self.tokenizer, scene, questions.turns("detail", scene, random)) for scene in made]

    def train(self, kinds, seed):
        """Rows of these kinds of data, with as many tokens of each."""
        each = self.sizes.tokens // len(kinds)
        scene = lambda kind: scenes.make("train", tower.CLOTHES, each // 20, f"{kind} {seed}")  # noqa: E731
        return rows.mixed([rows.of_kind(self.tokenizer, kind, scene(kind), each) for kind in kinds])
