import json

from modalloy.cli.main import USER_MISTAKE, main


def test_a_whole_run_ends_with_0(capsys, finished_run):
    assert main(["doctor", str(finished_run)]) == 0
    out = capsys.readouterr().out
    assert str(finished_run / "gallery") in out and out.endswith("\n0 problems\n")


def test_problems_end_with_1(capsys, run_copy):
    shard = run_copy / "features" / "subwords" / "text" / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert main(["doctor", str(shard.parent), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    (problem,) = found["problems"]
    assert str(shard) in problem
    assert main(["doctor", str(shard.parent)]) == 1
    assert f"problem features in {shard.parent}: {problem.partition(': ')[2]}" in capsys.readouterr().out.splitlines()


def test_what_people_called_their_files_is_no_markup(capsys, monkeypatch):
    found = {"checked": ["[red]x[/y]"], "problems": ["[/z] is broken"]}
    monkeypatch.setattr("modalloy.cli.doctor.Doctor.execute", lambda *_: found)
    assert main(["doctor", "demo"]) == 1
    assert capsys.readouterr().out.splitlines() == ["[red]x[/y]", "problem [/z] is broken", "1 problems"]


def test_nothing_to_look_at_is_a_mistake(capsys, tmp_path):
    assert main(["doctor", str(tmp_path / "nowhere")]) == USER_MISTAKE
    assert main(["doctor", str(tmp_path)]) == USER_MISTAKE
    assert "holds no images" in capsys.readouterr().err
