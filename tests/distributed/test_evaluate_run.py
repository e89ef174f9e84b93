"""``wholebatch train`` and ``evaluate`` on two processes: one answer, that of one process."""

from __future__ import annotations

import json

from launching import OURS, TORCHRUN, ended, launched


def test_two_processes_train_a_recipe_and_evaluate_it_as_one_does(tmp_path):
    run = tmp_path / "run"
    words = ["train", "epochs=1", "schedule=constant", f"run_dir={run}", "--processes", "2"]
    with launched([*OURS, *words], tmp_path) as process:
        code, out, err = ended(process, 100)
        assert (code, out.splitlines()[-1:]) == (0, [f"run: {run}"]), err
    with launched([*OURS, "evaluate", str(run)], tmp_path) as process:
        code, alone, err = ended(process, 100)
        assert (code, err) == (0, "")
    kept = json.loads((run / "evaluation.json").read_text())
    (run / "evaluation.json").unlink()
    words = ["--standalone", "--nproc-per-node", "2", "-m", "wholebatch", "evaluate", str(run)]
    with launched([*TORCHRUN, *words], tmp_path) as process:
        code, together, err = ended(process, 100)
        assert code == 0, err
    assert together.splitlines()[1:] == alone.splitlines()[1:]  # the first line is the loss, added in another order
    again = json.loads((run / "evaluation.json").read_text())
    assert abs(again.pop("loss") - kept.pop("loss")) < 1e-6
    assert again == kept
