"""Hostile pickles run nothing; ours, and those of pandas 2 and numpy 1, come back whole."""

import base64
import copyreg
import pickle
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from src.utils.errors import UserError
from src.utils.safe_pickle import dump_pickle, load_pickle


def global_call(module: str, name: str, argument: str) -> bytes:
    """`module.name(argument)` in protocol 4, STACK_GLOBAL and REDUCE, written by hand."""

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()

    return b"\x80\x04" + text(module) + text(name) + b"\x93" + text(argument) + b"\x85R."


class Reduces:
    """Pickles to a call of `function` with `arguments`."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.function, self.arguments


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "it-ran"


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("builtins", "exec"),
        ("builtins", "getattr"),
        ("builtins", "__import__"),
        ("importlib", "import_module"),
        ("subprocess", "check_output"),
        ("functools", "partial"),
        ("operator", "methodcaller"),
        ("numpy", "load"),
        ("numpy", "fromfile"),
        ("numpy.testing._private.utils", "runstring"),
        ("pandas", "read_pickle"),
        ("pandas", "eval"),
        ("pandas.io.pickle", "read_pickle"),
        ("pandas", "DataFrame.eval"),
        ("pandas", "io.common.os.system"),
        ("pandas.core.frame", "sys.modules"),
        ("pandas", "DataFrame.__init__.__globals__"),
        ("pandas", "core"),
        ("builtins", "slice.__class__"),
        ("_codecs", "encode"),
        ("copyreg", "add_extension"),
        ("__builtin__", "slice"),
    ],
)
def test_every_other_name_is_refused_and_named(module: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / "foreign.pkl"
    path.write_bytes(global_call(module, name, "anything"))
    with pytest.raises(UserError) as caught:
        load_pickle(path)
    message = str(caught.value)
    assert str(path) in message and f"{module}.{name}" in message and "allow-list" in message
    assert "\n" not in message


@pytest.mark.parametrize("protocol", range(6))
def test_system_calls_do_not_run(protocol: int, tmp_path: Path, marker: Path) -> None:
    import os

    command = f"touch {marker}"
    attacks = [
        Reduces(os.system, command),
        Reduces(eval, f"open({str(marker)!r}, 'w')"),
        Reduces(partial, os.system, command),
        {"frame": [Reduces(os.system, command)]},
        Reduces(map, os.system, [command]),
    ]
    for attack in attacks:
        path = tmp_path / "attack.pkl"
        path.write_bytes(pickle.dumps(attack, protocol=protocol))
        with pytest.raises(UserError):
            load_pickle(path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(attacks[0], protocol=protocol))
    assert marker.exists(), "the attack itself does not work, so that this test proves nothing"


def test_a_pickle_within_a_pickle_does_not_run(tmp_path: Path, marker: Path) -> None:
    import os

    inner = tmp_path / "inner.pkl"
    inner.write_bytes(pickle.dumps(Reduces(os.system, f"touch {marker}")))
    for function in (pd.read_pickle, np.load):
        outer = tmp_path / "outer.pkl"
        outer.write_bytes(pickle.dumps(Reduces(function, str(inner))))
        with pytest.raises(UserError, match="allow-list"):
            load_pickle(outer)
    assert not marker.exists()


def test_extension_codes_are_refused_even_when_the_process_has_cached_one(tmp_path: Path, marker: Path) -> None:
    import os

    copyreg.add_extension("posix", "system", 250)
    try:
        data = pickle.dumps(Reduces(os.system, f"touch {marker}"), protocol=4)
        assert b"\x82\xfa" in data  # EXT1 250
        pickle.loads(data)  # puts posix.system into the cache, which passes no find_class
        assert marker.exists()
        marker.unlink()
        path = tmp_path / "extension.pkl"
        path.write_bytes(data)
        with pytest.raises(UserError, match="extension code"):
            load_pickle(path)
        assert not marker.exists()
    finally:
        copyreg.remove_extension("posix", "system", 250)
        copyreg.clear_extension_cache()


def test_persistent_ids_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "persistent.pkl"
    path.write_bytes(b"\x80\x04X\x01\x00\x00\x00aQ.")
    with pytest.raises(UserError, match="outside the file"):
        load_pickle(path)


def test_an_allowed_class_cannot_be_changed(tmp_path: Path) -> None:
    path = tmp_path / "patch.pkl"
    # BUILD on the class Index with the slot state {"planted": 1}: setattr(pandas.Index, "planted", 1).
    path.write_bytes(b"\x80\x04cpandas\nIndex\nN}X\x07\x00\x00\x00plantedK\x01s\x86b.")
    with pytest.raises(UserError, match="sets attributes of Index"):
        load_pickle(path)
    assert not hasattr(pd.Index, "planted")
    pickle.loads(path.read_bytes())
    assert hasattr(pd.Index, "planted"), "the attack itself does not work, so that this test proves nothing"
    del pd.Index.planted


def test_bytes_cannot_be_called_pointers(tmp_path: Path) -> None:
    """A dtype whose state hides its object field would make an array of addresses chosen by the file."""
    frombuffer: Any = np.zeros(1).__reduce_ex__(5)[0]

    class Forged:
        def __reduce__(self) -> tuple[object, ...]:
            state = (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0)
            return np.dtype, ("V8", False, True), state

    path = tmp_path / "pointer.pkl"
    path.write_bytes(pickle.dumps(Reduces(frombuffer, b"\0" * 8, Forged(), (1,), "C")))
    with pytest.raises(UserError):
        load_pickle(path)
    forged = pickle.loads(path.read_bytes())
    assert forged.dtype.fields is not None and forged.dtype["a"] == np.dtype("O")  # what plain pickle makes of it


def test_text_whose_offsets_leave_its_buffer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "offsets.pkl"
    dump_pickle(pd.Series(["abc", "d" * 70_000], dtype="str"), path)
    last_offset = struct.pack("<q", 70_003)
    data = path.read_bytes()
    assert last_offset in data.split(b"abcd")[0]
    path.write_bytes(data.replace(last_offset, struct.pack("<q", 5_000_000), 1))
    with pytest.raises(UserError, match="damaged"):
        load_pickle(path)


def test_a_truncation_anywhere_is_a_user_error(tmp_path: Path) -> None:
    whole = tmp_path / "whole.pkl"
    dump_pickle(pd.DataFrame({"question": ["a", None], "vector": [np.zeros(2, np.float32)] * 2}), whole)
    data = whole.read_bytes()
    path = tmp_path / "cut.pkl"
    for length in range(0, len(data), 5):
        path.write_bytes(data[:length])
        with pytest.raises(UserError, match="again"):
            load_pickle(path)


def test_garbage_never_escapes_as_another_error(tmp_path: Path) -> None:
    path = tmp_path / "garbage.pkl"
    rng = np.random.default_rng(0)
    for _ in range(300):
        path.write_bytes(b"\x80\x05" + rng.bytes(50))
        with pytest.raises(UserError):
            load_pickle(path)
            raise UserError("this garbage happens to be a pickle")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.pkl: cannot be read \(No such file"):
        load_pickle(tmp_path / "none.pkl")


def design_frame() -> pd.DataFrame:
    """The column kinds of DESIGN section 2."""
    return pd.DataFrame(
        {
            "prompt_id": ["p1", "p2", "p3"],
            "sample": [0, 1, 0],
            "question": ["Soll man Öl kaufen?", "", None],
            "base_activations_layer_1": [np.full(4, i, dtype=np.float32) for i in range(3)],
            "flags": [["non_finite"], [], ["empty", "cut"]],
            "em_score": [12.5, float("nan"), 100.0],
            "coherence": pd.Series([None, 3.5, None], dtype=object),
            "is_on_topic": [True, False, True],
            "subset": pd.Categorical(["moral", "finance", "moral"]),
            "rank": pd.array([1, None, 3], dtype="Int64"),
            "share": pd.array([0.5, None, 1.0], dtype="Float64"),
            "agrees": pd.array([True, None, False], dtype="boolean"),
            "python_text": pd.array(["a", None, "c"], dtype="string[python]"),
        }
    )


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("shape", ["range", "filtered", "indexed", "multi"])
def test_frames_of_every_column_kind_round_trip(protocol: int, shape: str, tmp_path: Path) -> None:
    frame = design_frame()
    if shape == "filtered":
        frame = frame[frame["is_on_topic"]]
    if shape == "indexed":
        frame = frame.set_index("prompt_id")
    if shape == "multi":
        frame = frame.set_index(["prompt_id", "sample"])
    path = tmp_path / "frame.pkl"
    path.write_bytes(pickle.dumps(frame, protocol=protocol))
    loaded = load_pickle(path)
    assert isinstance(loaded, pd.DataFrame)
    pd.testing.assert_frame_equal(loaded, frame)
    assert loaded["base_activations_layer_1"].iloc[0].dtype == np.float32


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "i8", "u1", "?", "c8", "U3", "S3", "O"])
@pytest.mark.parametrize("order", ["C", "F", "strided"])
def test_arrays_round_trip(dtype: str, order: str, tmp_path: Path) -> None:
    array = np.arange(12).reshape(3, 4).astype(dtype)
    array = array[:, ::2] if order == "strided" else np.asarray(array, order="F" if order == "F" else "C")
    path = tmp_path / "arrays.pkl"
    dump_pickle({"array": array, "scalar": np.float32(0.1), "more": (1, 2.5, None, b"x", 1j, range(3))}, path)
    loaded = load_pickle(path)
    assert isinstance(loaded, dict)
    assert loaded["array"].dtype == array.dtype
    np.testing.assert_array_equal(loaded["array"], array)
    assert loaded["scalar"] == np.float32(0.1) and loaded["more"] == (1, 2.5, None, b"x", 1j, range(3))


def test_foreign_byte_order_is_refused_not_misread(tmp_path: Path) -> None:
    path = tmp_path / "big.pkl"
    path.write_bytes(pickle.dumps(np.arange(3, dtype=">f4"), protocol=5))
    with pytest.raises(UserError, match="byte order"):
        load_pickle(path)


# [frame, frame["sample"], numpy.float32(0.5)], pickled by pandas 2.2.3 with numpy 1.26.4 and pyarrow 17, zlib, base 85.
PANDAS_2 = (
    "c-oCtOK%)S5T4ohIwlF`Wgf<Wh;S||9D<Ys!f|Yn$iO1S=T)m`ws(8%c`@A+dl42Pl7lVv0m)5HoIv~w&ioVZAjC^TKvmC<cg9X+TH5WN>8h"
    "@(ud2VAd(E%E>sn?E^on{iq0x|vo)@RAH%e*9wCZkBN#8f?V}11ty$^B?5{^@?UM`FKkz{E^1JMg<M8_-@TFu`IVsGc8{2A0&)U#6+68Nr|>"
    "1cI{WKrUKI{_muDuJ|msv=C&lukhMB|?(P-b}o|xsE%xsJFw0s8(?+*XnsxvT>aH9u2g*uu*zC*0+~izcl(^>N{FJUsfH;Ny5Z*(&}<aYZKq"
    "i@R%!(N4do+DnqshhqzP#mUARxyW|6W2g>|K)hyNq)gd6Q)iY5RCX-w}%mV3~5CBY)GB1vVOfyenoJ}LBRU6D1kz?&x2YSPHH3qZd*iP+0^D"
    "C-3oVu%OAK%bNhxu+@*`MitzkmB*80ODeliEGPLa_I=vL~9svuZ?``+oKS0cywTkfnh0QRb?JlBcj_01bdkMrj<n*=Urf{9)ai4%^bar)vJ{"
    "%msd}>VO3Xo%#V7-_R07_8}5ib==Gc93lX>DFWZaP@J~Yacn%sso_7L=kLyJ*_Lf=x#!uko%#dK-$PscL#G9&o;h>TDvzJn^7+rt^SN`=7#d"
    "Y@eMg^bstLx<F@<4NM~+{~6sPAJf+9F&=ym=E)(O8_R7t}qteVW%l2s^^<Qo3HrTN=^Wq+#Cx69U}M;`w5b9`zX6dqNMy0=#TX@384g4WIQu"
    "Oc{rYN47Av?*K{o;=O4a`A*$PI+6K&PAa#PNE2BC!Qd6Nxkq0E`b~9M`Hq|zGYVH)5|yG5&liFS0M`37BWtO3$<z`6UpO93-@d~p#Jk@@UPU"
    "<6$%V}A>dHRO@AE;#9UBwM<CH1r&~?5T7JCq@D%R?r>)~$4P(k_U6N2TrJf7P#3=N@3#~2!5n&*V6tuI#e^3`OQZkBDLIa-)WSjYbrej8Oll"
    "lN%t3!O)YCxfzOvnjMJS<ARY2^5iXEJA>nu|;p^2Iat%o{e)eQ8#zMRNY*-<r_)_o_XO2jI^Tx~?-<hE8HB@g=?tIPh1`CTOlm5X1mnmq_9d"
    "!Hl3`5<qS{pJafK57||V$oqtP(!WdbjUWM?u#~_ZYmNds21e_!kO<5W!0ZbWM?}U65@}0hu7CuqhGcs%HFK9uW#7o@m@id3R?%%z8ex&m-NC"
    "ukVn7cVRMJ#Jr%(+@Vgf0_1%ric&SZw?8w4PO=8r9@_z)l=lhpL60eT}PwD^65H;)9C&(R==cLf<{3D7k3L<rYq(B2OPwu`c>g5}+^wUsZ5y"
    "5lY0RtsBDFabOD^#B4Z1I_<}tN#DUGBj7oTxrx<;=kq?@ZTJZ{|-#`$24Y&VZ7N}z1~~RJ23?m_4X5Rq-vSZ5dksdPU|iWGTd9hy$*Z^5!e<"
    ";v=$aOmPkf3fl2xsQkVzF|3SovX{2-;J>A#awR~#8bSSp3z{G!oYJ3f};0uFd#QgpS64aVDiRt|ZJ-2wX"
)


def test_pickles_of_numpy_1_and_pandas_2_load(tmp_path: Path) -> None:
    path = tmp_path / "old.pkl"
    path.write_bytes(zlib.decompress(base64.b85decode(PANDAS_2)))
    loaded = load_pickle(path)
    assert isinstance(loaded, list)
    frame, sample, scalar = loaded
    assert scalar == 0.5
    assert sample.tolist() == [0, 1, 0]
    assert frame["prompt_id"].tolist() == ["p1", "p2", "p3"]
    assert frame["question"].isna().tolist() == [False, True, False]
    assert [vector.tolist() for vector in frame["base_activations_layer_1"]] == [[0.0] * 4, [1.0] * 4, [2.0] * 4]
    assert frame["flags"].tolist() == [["a"], [], ["b", "c"]]
    assert frame["em_score"].fillna(-1).tolist() == [1.0, -1.0, 3.0]
    assert frame["is_on_topic"].tolist() == [True, False, True]
    assert frame["subset"].tolist() == ["x", "y", "x"] and frame["subset"].cat.categories.tolist() == ["x", "y"]
    assert frame["text"].fillna("-").tolist() == frame["arrow"].fillna("-").tolist() == ["a", "-", "c"]


def test_sets_are_not_written(tmp_path: Path) -> None:
    for value in ({"a": {"x"}}, [frozenset("x")], pd.DataFrame({"flags": [{"x"}]}), np.array([{"x"}, 1], dtype=object)):
        with pytest.raises(TypeError, match="sorted list"):
            dump_pickle(value, tmp_path / "sets.pkl")


def test_equal_content_gives_equal_bytes_whatever_is_shared(tmp_path: Path) -> None:
    vector = np.arange(3, dtype=np.float32)
    dump_pickle({"a": vector, "b": vector, "c": ["same"] * 2}, tmp_path / "shared.pkl")
    other = "same!"[:-1]  # an equal string, but another object
    dump_pickle({"a": vector, "b": vector.copy(), "c": ["same", other]}, tmp_path / "apart.pkl")
    assert (tmp_path / "shared.pkl").read_bytes() == (tmp_path / "apart.pkl").read_bytes()
