"""RunPod's API through a local server: states of pods, what is retried, and one line for everything that goes wrong."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from src.pod import config, persona_data_runner
from src.pod.api import Enum, Pod, RunPodApi, literal
from src.pod.client import stop_mutation
from src.pod.creation import PodWish, price_line
from src.pod.pods import Address, choose_pod, describe, state_of, wait_until_ready
from src.pod.settings import read_settings
from src.utils.errors import UserError
from tests.pod_api_server import ACCOUNT_KEY, ApiServer, pod_entry


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as one:
        yield one


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def api(server: ApiServer, waits: list[float]) -> RunPodApi:
    return RunPodApi(server.url, ACCOUNT_KEY, waits.append)


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    assert "\n" not in error.value.message and ACCOUNT_KEY not in error.value.message
    return error.value.message


def test_a_wrong_key(server: ApiServer, waits: list[float]) -> None:
    with pytest.raises(UserError) as caught:
        RunPodApi(server.url, "wrong", waits.append).pods()
    assert re.search(r"RUNPOD_API_KEY: RunPod refuses it \(HTTP 401\); put a valid key into .env", one_line(caught))
    assert not waits, "asking again does not help"


def test_a_rate_limit_is_waited_for_as_long_as_it_says(server: ApiServer, api: RunPodApi, waits: list[float]) -> None:
    server.failures = [(429, "slow down", {"Retry-After": "3"}), (429, "slow down", {})]
    server.pods = {"a": pod_entry("a", 1)}
    assert [pod.id for pod in api.pods()] == ["a"]
    assert waits == [3.0, 1.0] and len(server.asked) == 3


def test_a_server_error_is_retried_and_then_told(server: ApiServer, api: RunPodApi, waits: list[float]) -> None:
    server.failures = [(502, "<html>", {}), (500, "", {})]
    assert api.pods() == [] and len(waits) == 2
    server.failures = [(500, "", {})] * 10
    with pytest.raises(UserError, match=r"fails \(HTTP 500\), 5 times; try again later"):
        api.pods()


def test_nothing_there_and_nothing_in_time(server: ApiServer, waits: list[float]) -> None:
    with pytest.raises(UserError, match=r"cannot be reached \(.*\), 5 times"):
        RunPodApi("http://127.0.0.1:1", ACCOUNT_KEY, waits.append).pods()
    server.delay = 0.3
    with pytest.raises(UserError, match=r"did not answer within 0.05 s, 5 times"):
        RunPodApi(server.url, ACCOUNT_KEY, waits.append, timeout=0.05).pods()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("<html>busy</html>", "something that is no JSON"),
        ("[1]", "no GraphQL answer"),
        ("{}", "without data"),
        ('{"errors": [{"message": "Something\\nwent wrong"}]}', "Something"),
        ('{"errors": {"message": "Something"}}', "Something"),
        ('{"errors": "Something"}', "Something"),
        ('{"data": {"myself": {"pods": [{"name": "no id"}]}}}', "a pod that has no usable id"),
        ('{"data": {"myself": {"pods": ["pod"]}}}', "a pod that has no usable fields"),
        ('{"data": {"myself": {"pods": 5}}}', "no usable pods"),
        ('{"data": {"myself": "me"}}', "no usable myself"),
    ],
)
def test_a_body_that_is_no_answer(body: str, reason: str, server: ApiServer, api: RunPodApi) -> None:
    server.failures = [(200, body, {})]
    with pytest.raises(UserError, match=reason):
        api.pods()


@pytest.mark.parametrize("url", ["127.0.0.1:99", "http://host:port"])
def test_an_address_that_is_none(url: str, waits: list[float]) -> None:
    with pytest.raises(UserError, match=f"RUNPOD_API_BASE_URL: {url}/graphql is no web address"):
        RunPodApi(url, ACCOUNT_KEY, waits.append).pods()
    assert not waits


@pytest.mark.parametrize("number", ["-1", "0", "nan", "inf", "two"])
def test_hours_and_money_are_numbers_above_zero(number: str, capsys: pytest.CaptureFixture) -> None:
    for read, options in (
        (config.read_options, ["create", "--gpu", "A100", "--max-hours"]),
        (config.read_options, ["create", "--gpu", "A100", "--spot", "--bid"]),
        (persona_data_runner.read_options, ["--max-hours"]),
        (persona_data_runner.read_options, ["--idle-minutes"]),
    ):
        with pytest.raises(SystemExit) as caught:
            read([*options, number])
        assert caught.value.code == 2 and f"'{number}' is no number above 0" in capsys.readouterr().err


def test_creating_is_never_repeated_after_an_answer_that_did_not_come(server: ApiServer, api: RunPodApi) -> None:
    server.failures = [(502, "", {})]
    with pytest.raises(UserError, match=r"whether the pod was created is unknown: look with `src/pod/config.py list`"):
        api.create(PodWish("GPU").as_input(), is_spot=False)
    assert len(server.asked) == 1
    server.failures = [(429, "", {})]  # refused before anything happened
    assert api.create(PodWish("GPU").as_input(), is_spot=False).id == "new1"
    server.failures = [(200, json.dumps({"data": {"podFindAndDeployOnDemand": None}}), {})]
    with pytest.raises(UserError, match="no such pod to give now"):
        api.create(PodWish("GPU").as_input(), is_spot=False)


def test_strings_are_escaped_as_graphql_has_it() -> None:
    evil = 'a"}) { id } evil: podTerminate(input: {podId: "x\\\n'
    text = literal({"name": evil, "n": 3, "x": 0.5, "on": True, "list": ["a"], "cloud": Enum("ALL"), "none": None})
    assert text.startswith('{name: "') and text.endswith(
        ', n: 3, x: 0.5, on: true, list: ["a"], cloud: ALL, none: null}'
    )
    inner = re.match(r'\{name: ("(?:[^"\\]|\\.)*")', text)
    assert inner is not None and json.loads(inner[1]) == evil


def test_a_wish_carries_its_own_end_and_its_kind(server: ApiServer, api: RunPodApi) -> None:
    now = datetime(2026, 5, 4, 10, 0, tzinfo=UTC)
    fields = PodWish("A100", max_hours=1.5, volume_gb=70).as_input(now)
    assert fields["terminateAfter"] == "2026-05-04T11:30:00Z" and fields["volumeInGb"] == 70
    assert fields["ports"] == "22/tcp" and "bidPerGpu" not in fields
    assert fields["dockerArgs"] == (
        "bash -c '(test -f /workspace/em-persona/bin/on-start.sh && bash /workspace/em-persona/bin/on-start.sh) & "
        "exec /start.sh'"
    )
    assert "dockerArgs" not in PodWish("A100", image="pytorch/pytorch").as_input(now), "has a start of its own"
    spot = PodWish("A100", network_volume="vol", is_spot=True, bid=0.3).as_input(now)
    assert spot["bidPerGpu"] == 0.3 and spot["networkVolumeId"] == "vol" and "volumeInGb" not in spot
    api.create(spot, is_spot=True)
    assert (
        "podRentInterruptable" in server.created[0]
        and 'terminateAfter: "2026-05-04T11:30:00Z"' not in server.created[0]
    )


def test_stopping_a_pod_on_a_network_volume_is_left_to_runpod_to_refuse(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It did until May 2026; a guard ends such a pod all the same, as its volume outlives it."""
    monkeypatch.setenv("RUNPOD_API_KEY", ACCOUNT_KEY)
    monkeypatch.setenv("RUNPOD_API_BASE_URL", server.url)
    server.pods = {"p": pod_entry("p", 1, networkVolumeId="v")}
    config.main(["stop", "p", "--yes"])
    assert server.calls("podStop") == [ACCOUNT_KEY] and server.pods["p"]["desiredStatus"] == "EXITED"
    assert stop_mutation(Pod.model_validate(server.pods["p"])) == "podTerminate"
    config.main(["terminate", "p", "--yes"])
    assert not server.pods


def test_the_price_is_told_with_its_end(api: RunPodApi) -> None:
    assert price_line(api, PodWish("A100", gpu_count=2, max_hours=3)).startswith("$1.000 an hour (on demand)")
    assert price_line(api, PodWish("A100", gpu_count=2, max_hours=3)).endswith("at most $3.00 and storage")
    assert "$0.250 an hour (spot" in price_line(api, PodWish("A100", is_spot=True, bid=0.25))
    with pytest.raises(UserError, match=r"--spot: needs --bid, .*least that is taken now is 0.200"):
        price_line(api, PodWish("A100", is_spot=True))
    with pytest.raises(UserError, match="--bid: is for spot pods"):
        price_line(api, PodWish("A100", bid=0.25))


STATES = [
    (pod_entry("p", 22022), "running", Address("127.0.0.1", 22022)),
    (pod_entry("p"), "image is being pulled", None),
    (pod_entry("p", 1, runtime={"ports": None}), "has no ports yet", None),
    (pod_entry("p", 1, runtime={"ports": []}), "has no ports yet", None),
    (pod_entry("p", 22022, desiredStatus="EXITED"), "stopped", None),  # its ports are stale
    (pod_entry("p", 22022, desiredStatus="TERMINATED"), "terminated", None),
    (pod_entry("p", 1, desiredStatus="CREATED"), "not running yet", None),
    (
        pod_entry(
            "p", 1, runtime={"ports": [{"ip": "1.2.3.4", "isIpPublic": True, "privatePort": 8888, "publicPort": 1}]}
        ),
        "without a public port 22",
        None,
    ),
    (
        pod_entry(
            "p", 1, runtime={"ports": [{"ip": "1.2.3.4", "isIpPublic": False, "privatePort": 22, "publicPort": 1}]}
        ),
        "without a public port 22",
        None,
    ),
]


@pytest.mark.parametrize(("entry", "text", "address"), STATES)
def test_states_of_a_pod(entry: dict, text: str, address: Address | None) -> None:
    state = state_of(Pod.model_validate(entry))
    assert text in state.text and state.address == address
    assert state.may_come == (address is None and ("starting" in state.text or "not running yet" in state.text))
    assert "p " in describe(Pod.model_validate(entry))


def test_nulls_are_fields_that_are_not_there() -> None:
    port = {"ip": "1.2.3.4", "isIpPublic": None, "privatePort": 22, "publicPort": None, "type": "tcp"}
    pod = Pod.model_validate(pod_entry("p", 1, costPerHr=None, gpuCount=None, runtime={"ports": [port]}))
    assert pod.cost_per_hour == 0.0 and not state_of(pod).may_come


def test_which_pod_is_meant(server: ApiServer, api: RunPodApi, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no pod is running; create one") as caught:
        choose_pod(api, None)
    assert caught.value.exit_code == 2
    server.pods = {"a": pod_entry("a", 1), "b": pod_entry("b", 2, desiredStatus="EXITED")}
    assert choose_pod(api, None).id == "a"
    assert choose_pod(api, "b").id == "b"
    with pytest.raises(UserError, match=r"--pod c: the account has no such pod \(it has a, b\)"):
        choose_pod(api, "c")
    server.pods["c"] = pod_entry("c", 3)
    with pytest.raises(UserError, match="2 pods are running; choose with --pod: a, c"):
        choose_pod(api, None)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda prompt: "2")
    assert choose_pod(api, None).id == "c"


def test_waiting_for_an_image_and_not_for_what_will_not_come(server: ApiServer, api: RunPodApi) -> None:
    server.pods = {"p": pod_entry("p")}
    said: list[str] = []
    polls: list[float] = []

    def wait(seconds: float) -> None:
        polls.append(seconds)
        if len(polls) == 3:
            server.pods["p"] = pod_entry("p", 2222)

    assert wait_until_ready(api, "p", said.append, wait=wait)[1] == Address("127.0.0.1", 2222)
    assert len(polls) == 3 and said == ["pod p: starting: its image is being pulled"]
    server.pods["p"] = pod_entry("p", 2222, desiredStatus="EXITED")
    with pytest.raises(UserError, match="pod p: is stopped; start it in the console"):
        wait_until_ready(api, "p", said.append, wait=wait)
    server.pods["p"] = pod_entry("p")
    with pytest.raises(UserError, match=r"still starting: its image is being pulled after 20 minutes"):
        wait_until_ready(api, "p", said.append, wait=lambda seconds: None)
    server.pods.clear()
    with pytest.raises(UserError, match="pod p: was terminated"):
        wait_until_ready(api, "p", said.append, wait=wait)


def test_settings_keep_secrets_out_of_their_repr() -> None:
    environment = {
        "RUNPOD_API_KEY": " key1 ",  # pragma: allowlist secret
        "RUNPOD_PRIVATE_KEY": "phrase1",  # pragma: allowlist secret
        "HF_TOKEN": "token1",
    }
    settings = read_settings(environment)
    assert (settings.api_key, settings.passphrase, settings.hub_token) == ("key1", "phrase1", "token1")
    assert not [secret for secret in ("key1", "phrase1", "token1") if secret in repr(settings)]
    assert settings.api_url == "https://api.runpod.io" and settings.remote_root == "/workspace/em-persona"
    with pytest.raises(UserError, match="RUNPOD_API_KEY is not set; put it into"):
        read_settings({})
    with pytest.raises(UserError, match="RUNPOD_API_KEY holds a character that no key has") as caught:
        read_settings({"RUNPOD_API_KEY": "ключ"})
    assert "ключ" not in caught.value.message
    for root in ("here", "/", "/it's/mine", "/two words", "/a;b", "/$HOME"):
        with pytest.raises(UserError, match=r"--remote-root .*: must be absolute, of letters, digits and ._-/ alone"):
            read_settings(environment, remote_root=root)
