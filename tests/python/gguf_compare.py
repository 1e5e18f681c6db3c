"""`gguf_compare.py DIR CASE…`: what differs between CASE.gguf and CASE.tuned.gguf, as the gguf package reads them.

JSON per case: the types of the tensors whose bytes differ, and the metadata that differ.
"""

import json
import sys
from pathlib import Path

from gguf import GGUFReader

OUT = Path(sys.argv[1])


def plain(value):
    return str(value) if isinstance(value, (bytes, float)) else value


found = {}
for case in sys.argv[2:]:
    base, tuned = (GGUFReader(OUT / f"{case}{end}.gguf") for end in ("", ".tuned"))
    assert [t.name for t in base.tensors] == [t.name for t in tuned.tensors]
    changed = {}
    for a, b in zip(base.tensors, tuned.tensors):
        assert list(a.shape) == list(b.shape)
        if a.tensor_type != b.tensor_type or a.data.tobytes() != b.data.tobytes():
            changed[b.name] = b.tensor_type.name
    values = [
        {k: plain(f.contents()) for k, f in reader.fields.items() if not k.startswith("GGUF.")}
        for reader in (base, tuned)
    ]
    assert not values[0].keys() - values[1].keys()
    metadata = {k: v for k, v in values[1].items() if k not in values[0] or values[0][k] != v}
    found[case] = {"tensors": changed, "metadata": metadata}
print(json.dumps(found))
