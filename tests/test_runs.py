import gc
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import read_record

from selfens_jax import counting, runs
from selfens_jax.errors import UserError
from selfens_jax.runs import records

SETTINGS = {"sigma": 0.5, "num_draws": 10}


def whole(votes):
    return len(votes) == 3 and sum(votes) == 10


def votes_file(tmp_path):
    path = tmp_path / "votes.tsv"
    assert runs.open_log(path, SETTINGS, whole) == {}
    runs.append_log(path, {4: runs.Entry((7, 2, 1), 0.5)})
    runs.append_log(path, {9: runs.Entry((0, 0, 10), 1.25)})
    return path


def test_votes_come_back(tmp_path):
    votes = runs.open_log(votes_file(tmp_path), SETTINGS, whole)
    assert votes == {4: runs.Entry((7, 2, 1), 0.5), 9: runs.Entry((0, 0, 10), 1.25)}


@pytest.mark.parametrize("torn", ["1", "12\t0.5\t1", "12\t0.5\t10\t0\t0"])
def test_a_torn_last_line_is_cut_off(tmp_path, torn):
    path = votes_file(tmp_path)
    before = path.read_bytes()
    torn_file = before + torn.encode()
    path.write_bytes(torn_file)
    assert set(runs.read_log(path, SETTINGS, whole)) == {4, 9}
    assert path.read_bytes() == torn_file  # it may be another process's, still being written
    assert set(runs.open_log(path, SETTINGS, whole)) == {4, 9}
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("4\t0.1\t10\t0\t0", "example 4 twice"),
        ("5\t0.1\t10\t1\t0", "damaged in line 4"),  # eleven votes of ten draws
        ("5\t0.1\t10\t0", "damaged in line 4"),
        ("5\t0.1\tx\t0\t0", "damaged in line 4"),
    ],
)
def test_damaged_votes_are_refused(tmp_path, line, says):
    path = votes_file(tmp_path)
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=says):
        runs.open_log(path, SETTINGS, whole)


def test_votes_of_other_settings_are_refused(tmp_path):
    path = votes_file(tmp_path)
    with pytest.raises(UserError, match="other settings"):
        runs.open_log(path, {**SETTINGS, "masks_sha256": "other"}, whole)
    path.write_text("")
    with pytest.raises(UserError, match="other settings"):
        runs.open_log(path, SETTINGS, whole)


def test_votes_go_on_whatever_the_order_of_their_settings(tmp_path):
    path = votes_file(tmp_path)
    before = runs.read_log(path, SETTINGS, whole)
    assert runs.read_log(path, dict(reversed(SETTINGS.items())), whole) == before


DATA = {"name": "own", "source": "file", "scaling": "none", "num_test": 9, "classes": ["a", "b"]}
COUNTED = {"sigma": 0.5, "model": "lstm_fcn", "ensemble": "single", "num_draws": 10, "data": DATA}


@pytest.mark.parametrize(
    "change",
    [
        {"counts": np.array([[7, 3, 0], [2, 8, 0]])},  # three classes of two
        {"counts": np.array([[7, 3], [2, 9]])},  # eleven draws of ten
        {"counts": np.array([[7, 3], [2, 7]])},
        {"labels": np.array([0, 1, 1])},
        {"labels": np.array([0, 2])},
        {"labels": np.array([-2, 1])},
        {"forwards": np.array([10])},
        {"series_sha256": np.array(["0" * 16])},
        *({"settings": {k: v for k, v in COUNTED.items() if k != name}} for name in COUNTED),
        *(
            {"settings": COUNTED | {"data": {k: v for k, v in DATA.items() if k != name}}}
            for name in DATA
        ),
    ],
)
def test_counts_that_are_damaged_are_refused(tmp_path, change):
    sound = {
        "indices": np.array([4, 7]),
        "counts": np.array([[7, 3], [2, 8]]),
        "labels": np.array([-1, 1]),
        "forwards": np.array([10, 10]),
        "series_sha256": np.array(["0" * 16, "1" * 16]),
    }
    path = tmp_path / "counts-n10.npz"
    settings = change.get("settings", COUNTED)
    with_settings = {"settings": np.array(json.dumps(settings))}
    runs.write_npz(path, **sound, settings=np.array(json.dumps(COUNTED)))
    assert records.read_counts(path).counts.tolist() == [[7, 3], [2, 8]]
    runs.write_npz(path, **(sound | change | with_settings))
    with pytest.raises(UserError, match="damaged or was not written by certify"):
        records.read_counts(path)


def test_trees_come_back_bit_for_bit(tmp_path):
    tree = {"a": jnp.arange(6.0).reshape(2, 3) / 7, "b": {"step": jnp.int32(3)}}
    runs.save_tree(tmp_path / "tree", tree)
    back = runs.load_tree(tmp_path / "tree", jax.eval_shape(lambda: tree))
    assert runs.digest(back) == runs.digest(tree)


# Orbax reads in threads, which may end after its event loop when one finds the damage.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_foreign_or_damaged_checkpoint_is_one_clear_error(tmp_path):
    tree = {"a": jnp.ones(3)}
    runs.save_tree(tmp_path / "tree", tree)
    with pytest.raises(UserError, match="cannot be read") as error:
        runs.load_tree(tmp_path / "tree", {"other": jnp.ones(3)})
    assert "\n" not in str(error.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        runs.load_tree(tmp_path / "empty", tree)
    gc.collect()  # so that what Orbax left warns here, where it is ignored, and not at the end


def test_digest_sees_every_bit_shape_and_name():
    tree = {"a": np.zeros((2, 3), np.float32)}
    changed = {"a": np.zeros((2, 3), np.float32)}
    changed["a"][1, 2] = 1e-45
    others = [changed, {"b": tree["a"]}, {"a": tree["a"].T}, {"a": tree["a"].astype(np.float64)}]
    assert len({runs.digest(t) for t in [tree, *others]}) == 5
    assert runs.digest(tree) == runs.digest({"a": jnp.zeros((2, 3))})


def history(epochs):
    return [
        {"epoch": e + 1, "member": 0, "loss": 0.1 * e, "accuracy": 0.5, "learning_rate": 1e-3}
        for e in range(epochs)
    ]


def test_progress_keeps_the_latest_and_drops_later_history(tmp_path):
    states = ({"w": jnp.ones(2)},)
    assert runs.load_progress(tmp_path, states) is None
    runs.save_progress(tmp_path, 2, states, history(2))
    runs.save_progress(tmp_path, 4, ({"w": 2 * jnp.ones(2)},), history(4))
    assert sorted(p.name for p in (tmp_path / "progress").iterdir()) == ["4", "4.json"]
    runs.write_history(tmp_path, history(7))  # as if killed before the states of epoch 7
    (tmp_path / "progress" / "7.orbax-checkpoint-tmp").mkdir()  # and while writing them
    epoch, back, rows = runs.load_progress(tmp_path, states)
    assert epoch == 4
    assert back[0]["w"].tolist() == [2, 2]
    assert rows == history(4)


def test_progress_that_is_damaged_is_refused(tmp_path):
    states = ({"w": jnp.ones(2)},)
    runs.save_progress(tmp_path, 2, states, history(2))
    check = tmp_path / "progress" / "2.json"
    file = next(path for path in (tmp_path / "progress" / "2").rglob("d/*"))
    content = file.read_bytes()
    for harmed, says in ((content[:-1], "damaged"), (None, "missing")):
        file.unlink() if harmed is None else file.write_bytes(harmed)
        with pytest.raises(UserError, match=f"{re.escape(str(file))} is {says}"):
            runs.load_progress(tmp_path, states)
    file.write_bytes(content)
    (tmp_path / "history.csv").write_text((tmp_path / "history.csv").read_text().replace("1", "2"))
    with pytest.raises(UserError, match=r"history\.csv is damaged"):
        runs.load_progress(tmp_path, states)
    runs.write_history(tmp_path, history(2))
    check.unlink()  # as in runs of earlier versions
    assert runs.load_progress(tmp_path, states)[0] == 2
    (tmp_path / "history.csv").write_text("epoch,loss\n1\n")
    with pytest.raises(UserError, match=r"history\.csv is damaged"):
        runs.load_progress(tmp_path, states)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory"),
        (b"epoch,loss\n1,2.0\n", "its columns are others"),
        (b"epoch,member,loss,accuracy,learning_rate\n1,0,2.0\n", "not 'NoneType'"),
        (b"epoch,member,loss,accuracy,learning_rate\n1,0,x,1,1\n", "could not convert"),
        (b"epoch,member,loss,accuracy,learning_rate\n1,0,1,1,\xff\n", "can't decode"),
        (b"epoch,member,loss,accuracy,learning_rate\n" + 200_000 * b"1", "field larger"),
    ],
    ids=["lost", "columns", "cut", "word", "bytes", "long"],
)
def test_a_history_that_cannot_be_read_is_refused_with_a_remedy(tmp_path, content, reason):
    if content is not None:
        (tmp_path / "history.csv").write_bytes(content)
    says = rf"history\.csv is damaged \(.*{reason}.*\); train again with --overwrite, or fit again"
    with pytest.raises(UserError, match=says):
        runs.read_history(tmp_path)


@pytest.mark.parametrize("rows", [0, 1])
def test_progress_of_earlier_versions_without_all_its_epochs_is_refused(tmp_path, rows):
    states = ({"w": jnp.ones(2)},)
    runs.save_progress(tmp_path, 2, states, history(2))
    (tmp_path / "progress" / "2.json").unlink()
    runs.write_history(tmp_path, history(2)[:rows])
    with pytest.raises(UserError, match=r"history\.csv is damaged \(an epoch is missing\)"):
        runs.load_progress(tmp_path, states)


def test_the_record_of_a_checkpoint_that_was_removed_says_nothing_of_a_later_history(tmp_path):
    states = ({"w": jnp.ones(2)},)
    runs.save_progress(tmp_path, 2, states, history(2))
    runs.write_json(tmp_path / "checkpoint.json", {"history_sha256": "of another training"})
    assert runs.load_progress(tmp_path, states)[0] == 2


@pytest.mark.parametrize("code", [28, 13])
def test_what_the_system_refuses_to_orbax_is_an_error_of_the_system(tmp_path, monkeypatch, code):
    def save(*_):
        raise ValueError(f"RESOURCE_EXHAUSTED: Failed writing [os_error_code='{code}'] [more]")

    monkeypatch.setattr("selfens_jax.runs.run.ocp.save", save)
    with pytest.raises(OSError, match="progress/1") as caught:
        runs.save_progress(tmp_path, 1, {"w": jnp.ones(2)}, history(1))
    assert caught.value.errno == code
    monkeypatch.setattr("selfens_jax.runs.run.ocp.save", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        runs.save_progress(tmp_path, 1, {"w": jnp.ones(2)}, history(1))


def every_flip(path):
    """Writes the file with each of its bits turned around in turn."""
    content = path.read_bytes()
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        yield


def test_no_flipped_bit_of_a_record_passes(tmp_path):
    """It is refused, or was of blanks or of the word crc32, so that the record is the same."""
    path, record = tmp_path / "x.json", {"sigma": 0.5, "classes": ["a", "é"], "seed": 10}
    runs.write_json(path, record)
    refused = 0
    for _ in every_flip(path):
        try:
            found = runs.read_json(path)
        except UserError as error:
            refused += "x.json" in str(error)
        else:
            found = {key: value for key, value in found.items() if key in record}
            assert found == record
    assert refused > 8 * len(json.dumps(record)) * 0.9


def test_no_flipped_bit_of_a_log_passes(tmp_path):
    path, settings = tmp_path / "votes.tsv", {"n": 12}
    entries = {3: runs.Entry((30, 4, 8), 0.25), 17: runs.Entry((30, 11, 1), 1.5)}

    def read():
        return runs.read_log(path, settings, lambda values: len(values) == 3)

    runs.open_log(path, settings, lambda values: True)
    runs.append_log(path, entries)
    assert read() == entries
    unnamed = 0
    for _ in every_flip(path):
        try:
            found = read()
        except UserError as error:
            unnamed += "votes.tsv" not in str(error)
        else:  # where the end of a line is another one, or none: that line is counted again
            assert found in (entries, {3: entries[3]})
    assert not unnamed
    lines = path.read_text(errors="replace").splitlines()[:1]
    lines += ["3\t0.2500\t30\t4\t8", "17\t1.5000\t30\t11\t1"]  # of earlier versions
    path.write_text("\n".join(lines) + "\n")
    assert read() == entries


def test_finishing_leaves_the_checkpoint_and_no_progress(tmp_path):
    runs.save_progress(tmp_path, 1, {"w": jnp.ones(2)}, history(1))
    assert not runs.is_finished(tmp_path)
    runs.save_networks(tmp_path, {"w": jnp.ones(2)}, history(1))
    assert runs.is_finished(tmp_path)
    assert not (tmp_path / "progress").exists()


def test_differences_are_said_in_words():
    data = {"name": "CBF", "source": "directory", "scaling": "none", "sha256": "a" * 64}
    found = {"sigma": 0.8, "model": "macnn", "data": data, "more": 1}
    assert runs.differences(found, {"sigma": 0.8, "data": {**data, "source": "tslearn"}}) == ""
    assert runs.differences(found, {"sigma": 0.4}) == "sigma is 0.8, not 0.4"
    other = {**data, "source": "generated", "sha256": "b" * 64}
    assert "generated" in runs.differences(found, {"data": other})


def test_evenly_spaced():
    assert counting.evenly_spaced(None, 4).tolist() == [0, 1, 2, 3]
    assert counting.evenly_spaced(3, 9).tolist() == [0, 3, 6]
    assert len(set(counting.evenly_spaced(300, 899).tolist())) == 300
    for wrong in (0, -1, 10):
        with pytest.raises(UserError, match="between 1 and 9"):
            counting.evenly_spaced(wrong, 9)


def test_seconds_text():
    assert records.seconds_text(3723.25) == "1:02:03.250000"


def test_npz_files_are_never_unpickled(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, counts=np.array([{}], dtype=object))
    with pytest.raises(UserError, match=r"x\.npz"):
        runs.read_npz(path, ["counts"])
    with pytest.raises(UserError, match="lacks"):
        runs.read_npz(path, ["labels"])
    with pytest.raises(UserError, match="cannot be read"):
        runs.read_npz(tmp_path / "missing.npz", ["counts"])


@pytest.mark.parametrize("damage", ["one array", "cut", "text", "emptied"])
def test_what_is_no_npz_file_is_refused_and_closed(tmp_path, damage):
    path = tmp_path / "counts.npz"
    runs.write_npz(path, counts=np.arange(200))
    whole = path.read_bytes()
    match damage:
        case "one array":
            with path.open("wb") as file:
                np.save(file, np.arange(3))
        case "cut":
            path.write_bytes(whole[: len(whole) // 2])
        case "text":
            path.write_bytes(b"no archive of arrays")
        case "emptied":
            path.write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot be read: .*; move it away if it is damaged"):
        runs.read_npz(path, ["counts"])
    gc.collect()  # a file that is still open warns, which is an error here


def test_tables_have_the_same_bytes_on_every_system(tmp_path):
    runs.write_csv(tmp_path / "table.csv", ["a", "b"], [{"a": 1, "b": "two, three"}])
    assert (tmp_path / "table.csv").read_bytes() == b'a,b\n1,"two, three"\n'


def test_json_and_npz_are_written_whole_and_reproducibly(tmp_path):
    runs.write_json(tmp_path / "a" / "x.json", {"k": [1]})
    assert read_record(tmp_path / "a" / "x.json") == {"k": [1]}
    runs.write_npz(tmp_path / "a" / "1.npz", x=np.arange(3))
    runs.write_npz(tmp_path / "a" / "2.npz", x=np.arange(3))
    assert (tmp_path / "a" / "1.npz").read_bytes() == (tmp_path / "a" / "2.npz").read_bytes()
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["1.npz", "2.npz", "x.json"]


def test_the_device_is_named_with_the_cores_that_may_be_used(monkeypatch):
    monkeypatch.delenv("NPROC")
    assert re.fullmatch(r".+, [1-9]\d* cores?", runs.device_name())
    monkeypatch.setenv("NPROC", "3")
    assert re.fullmatch(r".+, [1-9]\d* cores?, NPROC=3", runs.device_name())
    assert runs.versions()["device"] == runs.device_name()
    for ignored in ("", "two", "2.5"):
        monkeypatch.setenv("NPROC", ignored)
        assert "NPROC" not in runs.device_name()


def test_flags_of_xla_are_recorded_where_there_are_any(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    assert runs.versions()["xla_flags"] == "--xla_cpu_enable_fast_math=true"
    monkeypatch.delenv("XLA_FLAGS")
    assert "xla_flags" not in runs.versions()


@pytest.mark.parametrize(
    ("info", "named"),
    [
        (
            "model name\t: Some CPU\nflags\t\t: fpu avx2 avx512f\n\nmodel name\t: Some CPU\n",
            "AVX-512",
        ),
        ("model name\t: Some CPU\nflags\t\t: fpu avx avx2\n", "AVX2"),
        ("model name\t: Some CPU\nflags\t\t: fpu avx\n", ""),
    ],
    ids=["avx512", "avx2", "avx"],
)
def test_the_device_is_named_with_its_instructions(monkeypatch, info, named):
    monkeypatch.delenv("NPROC")
    monkeypatch.setattr(pathlib.Path, "read_text", lambda *_: info)
    words = runs.device_name().split(", ")
    assert words[:-1] == ["Some CPU", *([named] if named else [])]
