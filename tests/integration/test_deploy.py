"""What is shipped beside the package: Dockerfile, compose file, Kubernetes manifests, systemd units.

Every name in them is one that the program knows, and what can be run without a container engine is run. hadolint,
check-jsonschema (which has the schema of compose files) and kubernetes-validate come with the extra `lint`, so they have their
say in one of the two builds; docker-compose and systemd-analyze have it where they are installed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psycopg
import pytest
import yaml
from fix_clients import Database
from fix_postgres import USERS, Postgres
from fix_proxy import MakeProxy, daemon_command
from fix_wait import LOOPBACK, accepts, free_port, hand_over, unprivileged_account, wait_until

from pgpool_proxy.auth.userlist import parse_userlist
from pgpool_proxy.cli import SUBCOMMANDS
from pgpool_proxy.settings import KEYS, load
from pgpool_proxy.settings.model import parse_setting

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "Dockerfile"
COMPOSE = ROOT / "docker-compose.yml"
KUBERNETES = sorted((ROOT / "deploy" / "kubernetes").glob("*.yaml"))
UNITS = sorted((ROOT / "deploy" / "systemd").iterdir())
SHIPPED = [DOCKERFILE, COMPOSE, *(path for path in (ROOT / "deploy").rglob("*") if path.is_file())]
SERVER_PORT, METRICS_PORT = 6432, 9127

Manifest = dict[str, Any]


def assert_probes_say_yes(container: Manifest, port: int) -> None:
    """Ask every probe of a container, of a daemon whose metrics are on this port."""
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        with urlopen(f"http://{LOOPBACK}:{port}{container[probe]['httpGet']['path']}", timeout=10) as answer:
            assert answer.status == 200


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile: (instruction, its arguments), continued lines joined."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in text.splitlines()) if word]


def manifests(name: str) -> list[Manifest]:
    return list(yaml.safe_load_all((ROOT / "deploy" / "kubernetes" / f"{name}.yaml").read_text()))


def manifest(name: str, kind: str) -> Manifest:
    (found,) = [each for each in manifests(name) if each["kind"] == kind]
    return found


def pod(name: str) -> Manifest:
    found: Manifest = manifest(name, "Deployment")["spec"]["template"]["spec"]
    return found


def pooler(name: str) -> Manifest:
    (found,) = [each for each in pod(name)["containers"] if each["name"] == "pgpool-proxy"]
    return found


def environment_of(container: Manifest) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container.get("env", [])}


def validator(name: str) -> str:
    """Its path: beside this Python, or on PATH."""
    places = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return shutil.which(name, path=places) or pytest.skip(f"{name} is not installed")


# --- names ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_variable_of_ours_is_a_setting_that_takes_its_value(path: Path) -> None:
    found: set[str] = set()
    text = path.read_text()
    for variable in re.findall(r"PGPOOL_PROXY_(\w+)", text):
        assert variable == "PURE" or variable.lower() in KEYS, f"{variable} is no setting"
    for key, value in re.findall(r"PGPOOL_PROXY_(\w+)(?:=|: |, value: )\"?([^\s\"}]*)", text):
        if key != "PURE":
            found.add(key)
            parse_setting(key.lower(), value)
    if path == COMPOSE or path.stem == "sidecar":
        assert found >= {"POOL_MODE", "DEFAULT_POOL_SIZE", "METRICS_LISTEN_ADDR"}


# --- the image --------------------------------------------------------------------------------------------------------------
def test_the_image_copies_files_that_exist_and_are_not_ignored() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    kept = [line.removeprefix("!") for line in lines if line.startswith("!")]
    copied = [rest.split()[:-1] for word, rest in instructions() if word == "COPY" and not rest.startswith("--from")]
    names = [name for names in copied for name in names]
    assert sorted(names) == sorted(kept)
    for name in names:
        assert (ROOT / name).exists()
        assert not any(fnmatch(name, line) for line in lines[1:] if not line.startswith("!"))


def test_the_image_runs_the_compiled_build_as_nobody_special_and_checks_itself() -> None:
    found = instructions()
    run = " ".join(rest for word, rest in found if word == "RUN")
    assert "PGPOOL_PROXY_PURE=0" in run
    (user,) = [rest for word, rest in found if word == "USER"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert f"useradd --uid {user.split(':')[0]} " in run
    assert ("STOPSIGNAL", "SIGTERM") in found
    (entrypoint,) = [json.loads(rest) for word, rest in found if word == "ENTRYPOINT"]
    (check,) = [json.loads(rest.partition(" CMD ")[2]) for word, rest in found if word == "HEALTHCHECK"]
    assert entrypoint == ["pgpool-proxy"]
    assert check[0] == "pgpool-proxy"
    assert check[1] in SUBCOMMANDS
    assert next(rest for word, rest in found if word == "FROM").endswith(" AS build")


def test_hadolint_has_nothing_to_say() -> None:
    done = subprocess.run([validator("hadolint"), DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_with_the_images_environment_nothing_is_written(make_proxy: MakeProxy, database: Database) -> None:
    """A root file system that is read-only has no place for a socket or a file."""
    (environ,) = [dict(re.findall(r"(PGPOOL_PROXY_\w+)=(\S*)", rest)) for word, rest in instructions() if word == "ENV"]
    environ["PGPOOL_PROXY_METRICS_PORT"] = "0"
    proxy = make_proxy(start=False, databases={}, environ=environ)
    environ["DATABASE_URL"] = f"postgresql://trust_user:x@{database.server.host}:{database.server.port}/{database.name}"
    environ["PGPOOL_PROXY_LISTEN_PORT"] = str(proxy.port)
    account = unprivileged_account()
    proxy.command = lambda: [*daemon_command(), *([] if account is None else ["-u", account])]  # type: ignore[method-assign]
    proxy.environ = environ
    proxy.start()
    before = {path.name for path in proxy.directory.iterdir()}
    assert proxy.sql("select 1", user="trust_user", password="x", dbname=database.name) == [(1,)]
    assert not proxy.log_contains("unix:")
    assert not Path(f"/tmp/.s.PGSQL.{proxy.port}").exists()
    assert {path.name for path in proxy.directory.iterdir()} == before


# --- compose ----------------------------------------------------------------------------------------------------------------
def test_every_service_says_whether_it_is_well_and_the_pooler_waits_for_the_database() -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    for name, service in services.items():
        assert service["healthcheck"]["test"], name
        assert "build" in service or re.search(r":[\w.-]+$", service["image"]), f"{name} has no version"
    proxy = services["proxy"]
    assert proxy["healthcheck"]["test"][:2] == ["CMD", "pgpool-proxy"]
    assert proxy["read_only"] is True
    assert proxy["depends_on"]["postgres"]["condition"] == "service_healthy"
    config = load(None, {}, proxy["environment"])
    (entry,) = config.databases.values()
    theirs = services["postgres"]["environment"]
    assert (entry.user, entry.password, entry.dbname) == tuple(theirs[f"POSTGRES_{key}"] for key in ("USER", "PASSWORD", "DB"))
    assert entry.hosts == ("postgres",)
    assert config.settings.pool_mode == "transaction"
    assert [port.split(":", 1)[1] for port in proxy["ports"]] == [
        f"{port}:{port}" for port in (config.settings.listen_port, config.settings.metrics_port)
    ]
    (scrape,) = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    assert scrape["static_configs"] == [{"targets": [f"proxy:{config.settings.metrics_port}"]}]
    for service in services.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert not source.startswith(".") or (ROOT / source).exists(), source


def test_the_compose_file_is_what_its_schema_says(tmp_path: Path) -> None:
    command = [validator("check-jsonschema"), "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, COMPOSE], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    other = tmp_path / "docker-compose.yml"
    other.write_text(COMPOSE.read_text().replace("depends_on:", "depend_on:"))
    assert subprocess.run([*command, other], capture_output=True, check=False, timeout=60).returncode == 1


def test_docker_compose_takes_the_file() -> None:
    command = [validator("docker-compose"), "-f", COMPOSE, "config", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# --- Kubernetes -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.stem)
def test_kubernetes_takes_the_manifests(path: Path) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    for each in yaml.safe_load_all(path.read_text()):
        kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate({**each, "spek": {}}, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("name", ["sidecar", "deployment"])
def test_the_pooler_has_probes_limits_and_no_rights(name: str) -> None:
    container = pooler(name)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"postgresql": SERVER_PORT, "metrics": METRICS_PORT}
    probes = {probe: container[probe]["httpGet"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert {probe["port"] for probe in probes.values()} == {"metrics"}
    assert [probe["path"] for probe in probes.values()] == ["/healthz", "/readyz", "/healthz"]
    annotations = manifest(name, "Deployment")["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(METRICS_PORT)
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}
    assert "memory" in container["resources"]["limits"]
    rights = container["securityContext"]
    (user,) = [rest.split(":") for word, rest in instructions() if word == "USER"]
    assert [str(rights["runAsUser"]), str(rights["runAsGroup"])] == user
    assert (rights["runAsNonRoot"], rights["readOnlyRootFilesystem"], rights["allowPrivilegeEscalation"]) == (True, True, False)
    assert rights["capabilities"] == {"drop": ["ALL"]}
    pauses = [int(number) for number in re.findall(r"sleep\W+(\d+)", json.dumps(container["lifecycle"]["preStop"]))]
    assert pauses
    assert sum(pauses) < pod(name)["terminationGracePeriodSeconds"]


def test_the_sidecar_differs_from_a_direct_connection_by_host_and_port_alone() -> None:
    app, proxy = pod("sidecar")["containers"]
    assert environment_of(app)["DATABASE_URL"] == "postgresql://localhost:6432/mydb"
    assert environment_of(proxy)["DATABASE_URL"] == "postgresql://db:5432/mydb"
    assert app["envFrom"] == proxy["envFrom"] == [{"secretRef": {"name": manifest("sidecar", "Secret")["metadata"]["name"]}}]


def test_the_sidecar_works_with_what_its_manifest_says(make_proxy: MakeProxy, postgres: Postgres, database: Database) -> None:
    environ = environment_of(pooler("sidecar"))
    secret = manifest("sidecar", "Secret")["stringData"]
    assert set(secret) == {"PGUSER", "PGPASSWORD"}
    secret = {"PGUSER": "scram_user", "PGPASSWORD": USERS["scram_user"][1]}
    proxy = make_proxy(start=False, databases={})
    url = environ["DATABASE_URL"].replace("db:5432/mydb", f"{postgres.host}:{postgres.port}/{database.name}")
    proxy.environ = {**environ, **secret, "DATABASE_URL": url, "PGPOOL_PROXY_LISTEN_PORT": str(proxy.port)}
    metrics = free_port()
    proxy.environ |= {"PGPOOL_PROXY_UNIX_SOCKET_DIR": "", "PGPOOL_PROXY_METRICS_PORT": str(metrics)}
    account = unprivileged_account()
    proxy.command = lambda: [*daemon_command(), *([] if account is None else ["-u", account])]  # type: ignore[method-assign]
    proxy.start()
    theirs = environment_of(pod("sidecar")["containers"][0])["DATABASE_URL"]
    theirs = theirs.replace("6432/mydb", f"{proxy.port}/{database.name}").replace("localhost", LOOPBACK)
    keywords = {"user": secret["PGUSER"], "password": secret["PGPASSWORD"]}
    with psycopg.connect(theirs, **keywords) as connection:
        assert connection.execute("select current_user").fetchone() == ("scram_user",)
    with pytest.raises(psycopg.OperationalError, match="authentication failed"):
        psycopg.connect(theirs, user="scram_user", password="wrong")
    wait_until(lambda: accepts(metrics))
    assert_probes_say_yes(pooler("sidecar"), metrics)


def test_the_deployment_works_with_the_files_of_its_manifests(
    make_proxy: MakeProxy, postgres: Postgres, tmp_path: Path
) -> None:
    volumes = {volume["name"]: volume for volume in pod("deployment")["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in pooler("deployment")["volumeMounts"]}
    config, secret = manifest("deployment", "ConfigMap"), manifest("deployment", "Secret")
    assert volumes["config"]["configMap"]["name"] == config["metadata"]["name"]
    assert volumes["secret"]["secret"]["secretName"] == secret["metadata"]["name"]
    ((ini_name, ini),) = config["data"].items()
    ((list_name, userlist),) = secret["stringData"].items()
    assert pooler("deployment")["args"] == [f"{mounts['config']}/{ini_name}"]
    assert f"auth_file = {mounts['secret']}/{list_name}\n" in ini
    users, problems = parse_userlist(userlist, list_name)
    assert problems == []
    proxy = make_proxy(start=False, databases={})
    ini = ini.replace(f"{mounts['secret']}/{list_name}", str(proxy.auth_file)).replace(
        f"listen_port = {SERVER_PORT}", f"listen_port = {proxy.port}"
    )
    ini = ini.replace("host=db port=5432 dbname=mydb", f"host={postgres.host} port={postgres.port} dbname=app")
    proxy.write_config()
    proxy.ini.write_text(ini)
    proxy.auth_file.write_text(userlist.replace('"app" "change-me"', '"scram_user" "scram-secret"'))
    hand_over(proxy.auth_file)
    proxy.write_config = lambda: None  # type: ignore[method-assign]
    metrics = free_port()
    proxy.environ = {"PGPOOL_PROXY_METRICS_PORT": str(metrics)}
    proxy.start()
    wait_until(lambda: accepts(metrics))
    assert_probes_say_yes(pooler("deployment"), metrics)
    assert proxy.sql("select current_user", dbname="mydb", user="scram_user", password="scram-secret") == [("scram_user",)]
    admin = load(str(proxy.ini), {}, {}).settings.admin_users
    assert admin in users
    assert proxy.admin("SHOW VERSION", user=admin, password=users[admin].value.decode())
    limits = manifest("deployment", "HorizontalPodAutoscaler")["spec"]
    assert limits["maxReplicas"] * load(str(proxy.ini), {}, {}).settings.default_pool_size < 100  # PostgreSQL's default


def test_the_parts_of_the_deployment_name_each_other() -> None:
    deployment = manifest("deployment", "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    ports = {port["name"]: port["containerPort"] for port in pooler("deployment")["ports"]}
    service = manifest("deployment", "Service")["spec"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert service["selector"] == labels
    assert [(port["port"], ports[port["targetPort"]]) for port in service["ports"]] == [(SERVER_PORT, SERVER_PORT)]
    assert manifest("deployment", "PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    target = manifest("deployment", "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", deployment["metadata"]["name"])
    assert "replicas" not in deployment["spec"]


# --- systemd ----------------------------------------------------------------------------------------------------------------
def unit(name: str) -> Iterator[tuple[str, str]]:
    text = (ROOT / "deploy" / "systemd" / name).read_text()
    return ((key, value) for key, _, value in (line.partition("=") for line in text.splitlines()) if key[:1].isalpha())


def test_the_service_reloads_and_ends_as_the_daemon_understands_it() -> None:
    service = dict(unit("pgpool_proxy.service"))
    assert service["ExecStart"].endswith("/bin/pgpool-proxy /etc/pgpool_proxy/pgpool_proxy.ini")
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert service["KillSignal"] == "SIGINT"
    assert service["User"] not in ("", "root")


def test_the_sockets_are_those_of_the_default_port() -> None:
    listens = [value for key, value in unit("pgpool_proxy.socket") if key == "ListenStream"]
    assert listens == [str(SERVER_PORT), f"/run/pgpool_proxy/.s.PGSQL.{SERVER_PORT}"]


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    for path in UNITS:
        text = re.sub(r"ExecStart=\S+", "ExecStart=/bin/true", path.read_text())  # it wants the program to be there
        (tmp_path / path.name).write_text(text)
    command = [validator("systemd-analyze"), "verify", *(tmp_path / path.name for path in UNITS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"})
    about = [line for line in done.stderr.splitlines() if "pgpool_proxy" in line]
    assert about == []
