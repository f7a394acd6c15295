import subprocess
import sys


def test_importing_openvino_after_rung_reports_nothing_and_forks_no_process():
    code = (
        "import os, sys, rung.engines\n"
        "os.register_at_fork(before=lambda: sys.exit('forked'))\n"
        "import openvino.tools.ovc as ovc, openvino.tools.ovc.telemetry_utils as utils\n"
        "print(utils.tm.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "openvino.tools.ovc.telemetry_stub"
