from __future__ import annotations

import sys

import psutil
import pytest
from launching import beside, python, run, together


@pytest.mark.parametrize("session", [False, True])
def test_what_is_not_done_by_its_deadline_ends_with_all_that_it_started(session):
    code = f"import subprocess; p = subprocess.Popen(['sleep', '77'], start_new_session={session}); "
    code += "print('pid', p.pid, flush=True); p.wait()"
    with pytest.raises(AssertionError, match=r"not done after 1 s: (?s:.*)\npid \d+\n") as caught:
        run([sys.executable, "-S", "-c", code], deadline=1)
    pid = int(str(caught.value).partition("\npid ")[2].split()[0])
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_what_ends_otherwise_fails_with_what_it_said():
    with pytest.raises(AssertionError, match=r"(?s)ended with \[3\], not 0: said\n.*told"):
        python("import os, sys; print('said'); print('told', file=sys.stderr); sys.stdout.flush(); os._exit(3)")
    assert python("import sys; sys.exit(3)", status=3).returncode == python("exit(3)", status=None).returncode == 3
    assert python("import sys; print(sys.stdin.read(), sys.argv[1])", 5, input=b"x").stdout == "x 5\n"


def test_the_other_of_two_that_waits_for_one_that_failed_is_ended():
    code = "import os, time; time.sleep(0 if os.environ['RANK'] == '1' else 77); exit(4)"
    done = together(code, patience=0.2, status=None)
    assert done.returncode != 0


def test_what_runs_beside_a_test_ends_with_the_block():
    with beside("import time; print('there', flush=True); time.sleep(77)") as process:
        assert process.stdout.readline() == "there\n"
    assert process.returncode == -9
