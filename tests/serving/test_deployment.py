"""Deployment files name options, paths and metrics that exist."""

import configparser
import re
import shlex
from pathlib import Path

import kubernetes_validate
import pytest
import typer.main
import yaml
from paced_engine import FakeEngine

from rung.cli.main import app
from rung.serving.app import app_with
from rung.serving.served import Served

DEPLOY = Path(__file__).parents[2] / "deploy"
ENDING = 10.0  # seconds that `OpenVinoApart.close` gives its process


VERSIONS = ("1.30", "1.37")  # of Kubernetes, the oldest and the newest that are checked
# No package has the schemas of KEDA's and KubeRay's kinds. These are the keys below `spec` that deploy/ uses of them.
# All passed the CRDs of August 2026 with unknown keys refused: do that again before one is added.
AUTOSCALING = (
    "scaleTargetRef.name minReplicaCount maxReplicaCount pollingInterval cooldownPeriod fallback.failureThreshold "
    "fallback.replicas advanced.horizontalPodAutoscalerConfig.behavior.scaleUp.stabilizationWindowSeconds "
    "advanced.horizontalPodAutoscalerConfig.behavior.scaleDown.stabilizationWindowSeconds triggers.type triggers.name "
    "triggers.metricType triggers.metadata.serverAddress triggers.metadata.query triggers.metadata.threshold"
)
CLUSTER = (
    "rayVersion headGroupSpec.rayStartParams headGroupSpec.template.spec workerGroupSpecs.groupName "
    "workerGroupSpecs.replicas workerGroupSpecs.minReplicas workerGroupSpecs.maxReplicas "
    "workerGroupSpecs.rayStartParams workerGroupSpecs.template.spec"
)
JOB = "entrypoint backoffLimit activeDeadlineSeconds shutdownAfterJobFinishes ttlSecondsAfterFinished"
KEYS = {
    ("keda.sh/v1alpha1", "ScaledObject"): {*AUTOSCALING.split()},
    ("ray.io/v1", "RayService"): {
        "serveConfigV2", "rayClusterConfig.enableInTreeAutoscaling",
        *(f"rayClusterConfig.{key}" for key in CLUSTER.split()),
    },
    ("ray.io/v1", "RayJob"): {*JOB.split(), *(f"rayClusterSpec.{key}" for key in CLUSTER.split())},
}  # fmt: skip


def manifests():
    files = ("kubernetes.yaml", "keda.yaml", "ray.yaml")
    return [each for file in files for each in yaml.safe_load_all((DEPLOY / file).read_text())]


def keys_of(value, at=""):
    """The keys below `spec`, but for those of pods and of what maps any names to texts."""
    if at.endswith(("template.spec", "rayStartParams")) or not isinstance(value, dict | list):
        yield at
    elif isinstance(value, list):
        for each in value:
            yield from keys_of(each, at)
    else:
        for key, each in value.items():
            yield from keys_of(each, f"{at}.{key}" if at else key)


def pods_of(value):
    """The pods that a manifest of another kind has somewhere in it."""
    for key, each in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if key == "template":
            yield {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, **each}
        else:
            yield from pods_of(each)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_manifests_follow_the_schemas_of_kubernetes(version):
    own = [each for each in manifests() if (each["apiVersion"], each["kind"]) not in KEYS]
    pods = [pod for each in manifests() if each not in own for pod in pods_of(each)]
    kinds = ["Deployment", "Service", "HorizontalPodAutoscaler", "NetworkPolicy", *["Pod"] * 4]
    assert [each["kind"] for each in (*own, *pods)] == kinds
    for each in (*own, *pods):
        assert kubernetes_validate.validate(each, version, strict=True) == version
    pods[0]["spec"]["containers"][0]["imagePullPolice"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError, match="imagePullPolice"):
        kubernetes_validate.validate(pods[0], version, strict=True)


def test_keys_of_kinds_without_a_schema_here_are_those_that_were_checked():
    others = [each for each in manifests() if (each["apiVersion"], each["kind"]) in KEYS]
    assert [each["kind"] for each in others] == ["ScaledObject", "RayService", "RayJob"]
    for each in others:
        assert set(each) == {"apiVersion", "kind", "metadata", "spec"}
        assert set(keys_of(each["spec"])) == KEYS[each["apiVersion"], each["kind"]]


def check_options(arguments):
    """Parse the arguments of `rung serve` as the command does, and run nothing."""
    command = typer.main.get_command(app).commands["serve"]
    with command.make_context("serve", list(arguments)) as context:
        return context.params


def test_the_manifest_probes_and_scales_by_what_is_there():
    deployment, service, scaler = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    options = check_options(container["args"])
    assert (options["host"], options["port"]) == ("0.0.0.0", container["ports"][0]["containerPort"])
    wait = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert wait + options["drain"] + ENDING < pod["terminationGracePeriodSeconds"]
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"]
    assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    served = Served()
    served.add_engine("fake", FakeEngine())
    server = app_with(served)
    paths = server.openapi()["paths"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] in paths
    metric = scaler["spec"]["metrics"][0]["pods"]["metric"]["name"]
    assert re.search(rf"^{metric} 0\.0$", server.state.rung.metrics.text().decode(), re.M)
    served.close()


def test_keda_scales_the_same_deployment_by_metrics_that_are_there():
    deployment, _, scaler = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    scaled = yaml.safe_load((DEPLOY / "keda.yaml").read_text())["spec"]
    assert scaled["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (1, scaler["spec"]["maxReplicas"])
    assert (scaled["pollingInterval"], scaled["cooldownPeriod"], scaled["fallback"]["replicas"]) == (15, 360, 2)
    served = Served()
    served.add_engine("fake", FakeEngine())
    text = app_with(served).state.rung.metrics.text().decode()
    served.close()
    thresholds = {}
    for trigger in scaled["triggers"]:
        name = re.fullmatch(r'sum\((\w+)\{job="rung"\}\)', trigger["metadata"]["query"])[1]
        assert re.search(rf"^{name}[{{ ]", text, re.M)
        thresholds[name] = trigger["metadata"]["threshold"]
    assert thresholds == {
        "rung_waiting": "5",
        "rung_queue": scaler["spec"]["metrics"][0]["pods"]["target"]["averageValue"],
    }


def test_ray_s_manifests_name_an_application_and_commands_that_exist():
    service, job, policy = yaml.safe_load_all((DEPLOY / "ray.yaml").read_text())
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    module, builder = application["import_path"].split(":")
    source = (DEPLOY.parent / "src" / f"{module.replace('.', '/')}.py").read_text()
    assert f"def {builder}(" in source
    settings = re.search(r"class RayServing\(BaseModel\):(.*?)\n\n\n", source, re.S)[1]
    assert all(f"\n    {name}: " in settings for name in application["args"])
    workers = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    assert application["args"]["replicas"] == [workers["minReplicas"], workers["maxReplicas"]]
    pod = workers["template"]["spec"]
    mounted = tuple(mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"])
    places = [*application["args"]["artifacts"].values(), application["args"]["key_file"]]
    assert all(place.startswith(mounted) for place in places)
    assert job["spec"]["entrypoint"].startswith("rung climb /artifacts/")
    (free,) = (rule["ports"] for rule in policy["spec"]["ingress"] if "from" not in rule)
    assert free == [{"port": 8000}]


def test_the_unit_and_the_image_give_options_that_exist():
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read(DEPLOY / "rung.service")
    program, command, *arguments = shlex.split(unit["Service"]["ExecStart"])
    assert (Path(program).name, command) == ("rung", "serve")
    assert check_options(arguments)["capture"] == "on"
    assert check_options(arguments)["drain"] + ENDING < float(unit["Service"]["TimeoutStopSec"])
    assert unit["Service"]["KillMode"] == "mixed"
    image = (DEPLOY / "Containerfile").read_text()
    arguments = re.search(r"^CMD (\[.*\])$", image, re.M)[1]
    assert check_options(yaml.safe_load(arguments))["host"] == "0.0.0.0"


def test_what_the_server_writes_to_is_mounted_over_the_read_only_image():
    image = (DEPLOY / "Containerfile").read_text()
    (cache,) = re.findall(r"^ENV RUNG_CACHE=(.*)$", image, re.M)
    assert re.findall(r"^VOLUME (.*)$", image, re.M) == [cache]
    pod = next(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))["spec"]["template"]["spec"]
    assert re.findall(r"^USER (\d+)$", image, re.M) == [str(pod["securityContext"]["runAsUser"])]
    (copies,), (server,) = pod["initContainers"], pod["containers"]
    assert copies["command"][2] == f"{cache}/."
    places = {mount["name"]: mount["mountPath"] for mount in server["volumeMounts"] if not mount.get("readOnly")}
    assert places == {"cache": cache, "tmp": "/tmp"}
    assert [{"name": "cache", "mountPath": copies["command"][3]}] == copies["volumeMounts"]
    assert server["securityContext"]["readOnlyRootFilesystem"]
    assert {volume["name"] for volume in pod["volumes"] if "emptyDir" in volume} == set(places)
