"""The ways of tuning that are compared: the weights of each that train, and the first rate that is tried."""

import dataclasses
import warnings
from typing import Callable

from training import Group

warnings.simplefilter("ignore")
from peft import LoraConfig, get_peft_model  # noqa: E402

CONNECTOR_RATE = 1e-3
RATES = [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1]
LINEAR = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


@dataclasses.dataclass
class Method:
    name: str
    own: Callable  # gives the parameters that train beside the connector; LoRA puts its own into the model first
    rate: float  # of those parameters, of RATES, the first to be tried
    connector: bool = True
    seeds: int = 1
    ours: bool = False  # `ln-tuning` trains it

    def groups(self, model, rate):
        """The connector keeps its rate, unless it trains alone."""
        own = self.own(model)
        groups = [Group(own, rate)] if own else []
        if self.connector:
            connector = list(model.model.multi_modal_projector.parameters())
            groups.append(Group(connector, CONNECTOR_RATE if own else rate))
        return groups


def named(model, *parts):
    text = model.model.language_model.named_parameters()
    return [parameter for name, parameter in text if any(part in name for part in parts)]


def norms(model):
    return [parameter for name, parameter in model.model.language_model.named_parameters() if "norm" in name]


def lora(model):
    config = LoraConfig(r=32, lora_alpha=64, target_modules=LINEAR)
    return [parameter for parameter in get_peft_model(model, config).parameters() if parameter.requires_grad]


def attention(model):
    return named(model, "q_proj", "v_proj")


def everything(model):
    return list(model.model.language_model.parameters())


METHODS = [
    Method("LN + connector", norms, 3e-3, seeds=2, ours=True),
    Method("LN", norms, 3e-3, connector=False, ours=True),
    Method("connector", lambda _: [], 3e-4),
    Method("LoRA r32 + connector", lora, 1e-3, seeds=2),
    Method("attention QV + connector", attention, 3e-4),
    Method("full", everything, 1e-4),
]
