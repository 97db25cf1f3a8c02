"""RunPod's GraphQL API: which pods there are, and creating, stopping and terminating them.

Raw GraphQL over httpx rather than the `runpod` package, which knows neither spot pods nor `terminateAfter`, retries
nothing and does not escape strings. Failures are one line; what can be asked twice is retried.
"""

import json
import re
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from types import UnionType
from typing import Any

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from src.utils.errors import UserError

ATTEMPTS = 5
FIRST_WAIT = 0.5  # seconds; doubles with each attempt
LONGEST_WAIT = 30.0
TIMEOUT = 30.0
POD_FIELDS = (
    "id name desiredStatus costPerHr gpuCount imageName podType uptimeSeconds lastStatusChange networkVolumeId "
    "dockerArgs machine { gpuDisplayName } "
    "runtime { uptimeInSeconds ports { ip isIpPublic privatePort publicPort type } gpus { id } }"
)


class Answer(BaseModel):
    """Part of an API answer: fields that we do not ask for are nobody's business here."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def without_nulls(cls, value: Any) -> Any:
        """A null is a field that is not there."""
        if not isinstance(value, dict):
            return value
        return {name: item for name, item in value.items() if item is not None}


class Port(Answer):
    ip: str | None = None
    is_public: bool = Field(False, alias="isIpPublic")
    private: int = Field(alias="privatePort")
    public: int | None = Field(None, alias="publicPort")


class Runtime(Answer):
    uptime: int | None = Field(None, alias="uptimeInSeconds")
    ports: list[Port] | None = None


class Machine(Answer):
    gpu: str | None = Field(None, alias="gpuDisplayName")


class Pod(Answer):
    """A pod as the API shows it. `runtime` is None until its container runs; an exited pod may keep stale ports."""

    id: str
    name: str | None = None
    status: str = Field(alias="desiredStatus")  # RUNNING, EXITED, TERMINATED, ...
    cost_per_hour: float = Field(0.0, alias="costPerHr")  # US dollars
    gpu_count: int | None = Field(None, alias="gpuCount")
    image: str | None = Field(None, alias="imageName")
    kind: str | None = Field(None, alias="podType")
    status_change: str | None = Field(None, alias="lastStatusChange")
    network_volume: str | None = Field(None, alias="networkVolumeId")
    start_command: str | None = Field(None, alias="dockerArgs")  # in the place of the image's own
    machine: Machine | None = None
    runtime: Runtime | None = None

    @property
    def is_spot(self) -> bool:
        return self.kind == "INTERRUPTABLE"

    @property
    def changed(self) -> datetime | None:
        """When its state last changed, told as `Exited by user: Fri Jun 19 2026 03:36:49 GMT+0000 (...)`."""
        found = re.search(r"\w{3} \w{3} \d+ \d{4} [\d:]+ GMT[+-]\d{4}", self.status_change or "")
        try:
            return datetime.strptime(found[0], "%a %b %d %Y %H:%M:%S GMT%z") if found else None
        except ValueError:
            return None

    @property
    def gpu(self) -> str:
        name = (self.machine.gpu if self.machine else None) or "GPU"
        return f"{self.gpu_count or 0} x {name}"


class Enum(str):
    """A GraphQL enum value: written without quotes."""

    __slots__ = ()


class RunPodApi:
    """The API under one account's key. `wait` sleeps between attempts; `timeout` in seconds."""

    def __init__(
        self, url: str, key: str, wait: Callable[[float], object] = time.sleep, timeout: float = TIMEOUT
    ) -> None:
        self._url = f"{url}/graphql"
        self._wait = wait
        self._timeout = timeout
        self._client = httpx.Client(timeout=timeout, headers={"Authorization": f"Bearer {key}"})

    def pods(self) -> list[Pod]:
        """Every pod of the account, in the API's order."""
        myself = part(self._ask(f"query {{ myself {{ pods {{ {POD_FIELDS} }} }} }}"), "myself", dict) or {}
        return [self._pod(value) for value in part(myself, "pods", list) or []]

    def pod(self, pod_id: str) -> Pod | None:
        """One pod; None if the account has none of that id (never had, or it was terminated)."""
        query = f"query {{ pod(input: {literal({'podId': pod_id})}) {{ {POD_FIELDS} }} }}"
        value = part(self._ask(query), "pod", dict)
        return self._pod(value) if value else None

    def create(self, wanted: Mapping[str, Any], is_spot: bool) -> Pod:
        """Create a pod from the fields of the mutation's input. Never repeated after an answer that did not come."""
        mutation = "podRentInterruptable" if is_spot else "podFindAndDeployOnDemand"
        query = f"mutation {{ {mutation}(input: {literal(wanted)}) {{ id name desiredStatus costPerHr }} }}"
        value = part(self._ask(query, is_repeatable=False), mutation, dict)
        if not value:
            raise UserError("RunPod has no such pod to give now; choose another --gpu, --cloud, or a higher --bid")
        return self._pod(value)

    def stop(self, pod_id: str) -> None:
        self._ask(f"mutation {{ podStop(input: {literal({'podId': pod_id})}) {{ id desiredStatus }} }}")

    def terminate(self, pod_id: str) -> None:
        self._ask(f"mutation {{ podTerminate(input: {literal({'podId': pod_id})}) }}")

    def gpu_price(self, gpu: str, count: int, is_spot: bool) -> float | None:
        """US dollars an hour for so many GPUs of a type; None where the API names no price."""
        query = (
            f"query {{ gpuTypes(input: {literal({'id': gpu})}) {{ id "
            f"lowestPrice(input: {literal({'gpuCount': count})}) {{ minimumBidPrice uninterruptablePrice }} }} }}"
        )
        types = part(self._ask(query), "gpuTypes", list) or [{}]
        price = part(types[0], "lowestPrice", dict) or {}
        each = part(price, "minimumBidPrice" if is_spot else "uninterruptablePrice", int | float)
        return each * count if each is not None else None

    def _pod(self, value: Any) -> Pod:
        try:
            return Pod.model_validate(value)
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            raise UserError(
                f"RunPod's API: answered with a pod that has no usable {where or 'fields'}; try again later"
            ) from error

    def _ask(self, query: str, is_repeatable: bool = True) -> dict[str, Any]:
        """`data` of the answer. A rate limit is always waited for, other failures only where asking again is safe."""
        reason = ""
        for attempt in range(ATTEMPTS):
            wait = min(LONGEST_WAIT, FIRST_WAIT * 2**attempt)
            try:
                response = self._client.post(self._url, json={"query": query})
            except httpx.TimeoutException:
                reason = f"did not answer within {self._timeout:g} s"
            except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
                raise UserError(f"RUNPOD_API_BASE_URL: {self._url} is no web address ({error}); correct it") from error
            except httpx.HTTPError as error:
                reason = f"cannot be reached ({error or type(error).__name__})"
                is_never_sent = isinstance(error, httpx.ConnectError)
                if is_never_sent and not is_repeatable:
                    self._wait(wait)
                    continue
            else:
                if response.status_code == 429:
                    reason = "refuses for now (429, too many requests)"
                    self._wait(min(LONGEST_WAIT, retry_after(response) or wait))
                    continue
                if response.status_code < 500:
                    return data_of(response)
                reason = f"fails (HTTP {response.status_code})"
            if not is_repeatable:
                raise UserError(
                    f"RunPod's API: {reason}; whether the pod was created is unknown: look with "
                    "`src/pod/config.py list` before you try again"
                )
            self._wait(wait)
        raise UserError(f"RunPod's API: {reason}, {ATTEMPTS} times; try again later (status.runpod.io)")


def retry_after(response: httpx.Response) -> float | None:
    try:
        return float(response.headers["retry-after"])
    except (KeyError, ValueError):
        return None


def data_of(response: httpx.Response) -> dict[str, Any]:
    """`data` of a GraphQL answer, or the reason why there is none, as `UserError`."""
    if response.status_code in (401, 403):
        raise UserError(f"RUNPOD_API_KEY: RunPod refuses it (HTTP {response.status_code}); put a valid key into .env")
    try:
        body = response.json()
    except ValueError as error:
        raise UserError(
            f"RunPod's API: answered HTTP {response.status_code} with something that is no JSON; check "
            "RUNPOD_API_BASE_URL, or try again later"
        ) from error
    if not isinstance(body, dict):
        raise UserError("RunPod's API: answered with JSON that is no GraphQL answer; check RUNPOD_API_BASE_URL")
    if body.get("errors"):
        errors = body["errors"]
        first = errors[0] if isinstance(errors, list) else errors
        message = first.get("message") if isinstance(first, dict) else str(first)
        raise UserError(f"RunPod's API: {str(message)[:300]}; mend what it names, or look at the console")
    if response.status_code != 200 or not isinstance(body.get("data"), dict):
        raise UserError(f"RunPod's API: answered HTTP {response.status_code} without data; try again later")
    return body["data"]


def part(value: Any, name: str, kind: type | UnionType) -> Any:
    """A field of an answer, None where it has none; `UserError` where it is not of that kind."""
    found = value.get(name) if isinstance(value, dict) else value
    if found is not None and not isinstance(found, kind):
        raise UserError(f"RunPod's API: answered with no usable {name}; try again later")
    return found


def literal(value: Any) -> str:
    """A value as it stands in a GraphQL document, strings escaped (June 2018 specification, section 2.9)."""
    if isinstance(value, Enum):
        return str(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {literal(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(literal(item) for item in value) + "]"
    return json.dumps(value)
