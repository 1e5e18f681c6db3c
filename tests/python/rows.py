"""Data files as pyarrow writes them, for the tests of the program (cli/tests).

`write DIR ROWS`     the rows of a JSON file as Parquet, in every compression and version of pages
`types DIR`          a Parquet file with columns of many types
`arrow DIR`          files of Arrow and compressed files that are not read
"""

import bz2
import datetime
import decimal
import json
import lzma
import sys

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as parquet


def write(directory, rows):
    rows = json.load(open(rows))
    # All keys, of which Table.from_pylist takes those of the first row.
    keys = dict.fromkeys(key for row in rows for key in row)
    table = pa.table({key: pa.array([row.get(key) for row in rows]) for key in keys})
    for compression in ["none", "snappy", "gzip", "zstd", "brotli", "lz4"]:
        parquet.write_table(table, f"{directory}/{compression}.parquet", compression=compression)
    parquet.write_table(table, f"{directory}/old.parquet", version="1.0", use_compliant_nested_type=False)
    parquet.write_table(table, f"{directory}/pages.parquet", data_page_version="2.0", use_dictionary=False)
    parquet.write_table(table, f"{directory}/groups.parquet", row_group_size=1)


def types(directory):
    noon = datetime.datetime(2020, 1, 2, 12, 30)
    columns = {
        "text": pa.array(["a", "b"], pa.large_string()),
        "view": pa.array(["a", None], pa.string_view()),
        "dictionary": pa.array(["x", "x"]).dictionary_encode(),
        "binary": pa.array([b"text", b"\xff\x00"]),
        "byte": pa.array([-1, None], pa.int8()),
        "large": pa.array([2**63 + 1, 0], pa.uint64()),
        "half": pa.array([0.5, None], pa.float16()),
        "float": pa.array([0.5, float("nan")], pa.float32()),
        "double": pa.array([0.1, float("inf")]),
        "flag": pa.array([True, None]),
        "day": pa.array([noon.date(), None]),
        "decimal": pa.array([decimal.Decimal("1.25"), None]),
        "map": pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int64())),
        "fixed": pa.array([[1, 2], [3, 4]], pa.list_(pa.int64(), 2)),
        "nested": pa.array([[["a"], [], None], None], pa.large_list(pa.list_(pa.string()))),
        "struct": pa.array([{"a": 1, "b": None}, {"a": None, "b": {"c": "d"}}]),
        "nothing": pa.array([None, None]),
    }
    parquet.write_table(pa.table(columns), f"{directory}/types.parquet")


def arrow(directory):
    table = pa.table({"text": ["a", "b"]})
    feather.write_feather(table, f"{directory}/file.arrow")
    with pa.ipc.new_stream(f"{directory}/stream.dat", table.schema) as stream:
        stream.write_table(table)
    for name, pack in [("packed.bz2", bz2.compress), ("packed.xz", lzma.compress)]:
        with open(f"{directory}/{name}", "wb") as file:
            file.write(pack(b'{"text": "a"}\n'))


{"write": write, "types": types, "arrow": arrow}[sys.argv[1]](*sys.argv[2:])
