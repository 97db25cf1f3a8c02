"""One generation run from its order to its files: what is planned, the confirmation, the asking, the writing."""

from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from src.utils.config import CONFIG_FOLDER, Config, shown
from src.utils.dataset_generation.files import REPLIES, generated_folder, refuse_other_set, save_set
from src.utils.dataset_generation.ledger import Ledger
from src.utils.dataset_generation.order import Order
from src.utils.dataset_generation.rounds import Asked, Progress, Service, estimate_round, fill, plan_round
from src.utils.dataset_generation.selection import Selection, select
from src.utils.errors import UserError
from src.utils.llm.confirmation import confirm
from src.utils.llm.prices import Price, cost_line, load_price
from src.utils.llm.providers import make_client
from src.utils.manifests import Provenance, hash_inputs
from src.utils.progress import progress_bar
from src.utils.record_store import open_store

STEP = "01_generate_dataset"
PRICES = CONFIG_FOLDER / "llm_prices.yaml"
READS_ENGLISH = "qwen3_4b"  # a profile whose model does; an organism reads its grammar only


def describe(order: Order) -> str:
    """The requests that a run would begin with, their count and cost; nothing is written.

    All of them by name, and whole one of each kind, or with `full` all.
    """
    ledger = look_up(order)
    selection = select(order.task, ledger.drafts())
    planned = plan_round(ledger, selection)
    lines = [headline(ledger, selection)]
    lines += [f"  {asked.cell.name} #{asked.ordinal}: {order.task.batch} {order.task.rows}" for asked in planned]
    lines += [f"{ledger.model}: {estimate_line(ledger, planned, order)}"]
    if planned:
        lines += ["", "Every request:" if order.full else f"One of each kind (--full prints all {len(planned):,}):"]
    for asked in planned if order.full else one_of_each_kind(planned):
        name = f"{asked.cell.name} #{asked.ordinal}"
        lines += [f"--- {name}, system", asked.request.system, f"--- {name}, user", asked.request.user]
    return "\n".join(lines)


def one_of_each_kind(planned: list[Asked]) -> list[Asked]:
    """The first request of each key: what is asked for is worded alike in all others of it."""
    first: dict[int | None, Asked] = {}
    for asked in planned:
        first.setdefault(asked.cell.keyed, asked)
    return list(first.values())


def generate(order: Order, key: str, yes: bool, force: bool, profile: str) -> list[Path]:
    """Ask for what the set lacks and write it; its files.

    Raises `UserError` where the run is not confirmed or cannot be finished; replies are kept in any case.
    """
    folder = generated_folder(order.name)
    service = Service(
        make_client=lambda: make_client(order.provider, order.model, key, order.base_url, order.timeout),
        price=price_of(order),
        limits=order.limits,
    )
    ledger = look_up(order)
    refuse_other_set(folder, ledger, force)
    inputs = hash_inputs({f"specification {order.specs_file.name}": order.specs_file})
    settings = {"kind": order.task.kind, "provider": order.provider, "model": order.model, "rows": order.task.want}
    provenance = Provenance(STEP, profile, config={"generation": settings}, inputs=inputs)
    selection = select(order.task, ledger.drafts())
    print(headline(ledger, selection))
    if planned := plan_round(ledger, selection):
        confirm(estimate_line(ledger, planned, order), order.model, yes)
    with open_store(folder / REPLIES) as store:
        ledger = replace(ledger, records=store.records)
        if planned:
            with progress_bar(order.task.kind, "request") as bar:
                selection = fill(ledger, store, service, lambda progress: show(bar, progress))
        return save_set(folder, ledger, selection, ledger.totals(store.path), order.provider, provenance)


def look_up(order: Order) -> Ledger:
    """What the set's store holds, none where there is no store yet."""
    file = generated_folder(order.name) / REPLIES
    if not file.exists():
        return Ledger(order.task, order.model, {})
    with open_store(file) as store:
        return Ledger(order.task, order.model, store.records)


def price_of(order: Order) -> Price:
    """The model's price; `UserError` (exit code 2) for a limit on a cost that nobody would know."""
    price = load_price(PRICES, order.model)
    if order.limits.max_cost is not None and order.provider == "gemini" and not price.is_known:
        raise UserError(f"--max-cost: gemini reports no cost; add {order.model} to {shown(PRICES)}", 2)
    return price


def headline(ledger: Ledger, selection: Selection) -> str:
    task = ledger.task
    return f"{task.kind} by {ledger.model}: {selection.have:,} of {task.want:,} {task.rows} are there"


def estimate_line(ledger: Ledger, planned: list[Asked], order: Order) -> str:
    found = estimate_round(ledger, planned, load_price(PRICES, order.model))
    return f"{found}; later rounds ask for what is then missing" if planned else "nothing is missing"


def show(bar: tqdm, progress: Progress) -> None:
    """Requests done and, behind them, rows that the set has and what the run has cost."""
    bar.total = progress.planned
    cost, rows = cost_line(progress.cost, progress.cost_is_known), f"{progress.have}/{progress.want}"
    waits = {"refused": f"{progress.refused}, waiting"} if progress.refused else {}
    bar.set_postfix({"round": progress.round_number, "rows": rows, "cost": cost} | waits, refresh=bool(waits))
    bar.update(progress.done - bar.n)


def closing_line(order: Order, files: list[Path], config: Config) -> str:
    """Where the set is, and a command that uses it: with the run's profile if its model reads English."""
    names = [shown(file) for file in files]
    is_survey = order.task.kind == "questions"
    script = "03_collect_activations.py" if is_survey else "02_finetune_lora.py"
    profile = config.profile if config.model.world is None else READS_ENGLISH
    rows = f"--prompts {' '.join(names)}" if is_survey else f"--data {names[0]}"
    return (
        f"{order.task.want} {order.task.rows}: {', '.join(names)}\n"
        f"  uv run python src/scripts/{script} --profile {profile} {rows} --results-dir results/{order.name}"
    )
