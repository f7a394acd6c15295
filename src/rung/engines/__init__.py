"""What runs models: one protocol, its engines, label scoring and the response cache."""

import sys

# OpenVINO reports its import to its maker, from a forked process, and NNCF reports too: Rung sends nothing. Where this
# module cannot be imported both use a stub that does nothing.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
