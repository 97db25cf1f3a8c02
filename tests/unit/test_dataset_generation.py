"""Specifications, requests and selection of generated data sets, without a server."""

import json
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from src.utils.config import CONFIG_FOLDER, PROJECT_ROOT
from src.utils.dataset_generation.advice import AdviceTask
from src.utils.dataset_generation.files import generated_folder
from src.utils.dataset_generation.ledger import Ledger
from src.utils.dataset_generation.questions import QuestionTask, question_flaw, reverse_keyed
from src.utils.dataset_generation.selection import select
from src.utils.dataset_generation.specs import FinetuneSpecs, QuestionSpecs, load_specs, share_out
from src.utils.dataset_generation.tasks import Cell, Draft
from src.utils.errors import UserError
from src.utils.llm.api import ChatReply
from src.utils.prompts import DIMENSIONS, load_questions
from src.utils.question_quality import jaccard, words
from tests.dataset_writer import question, row

QUESTIONS_FILE, FINETUNE_FILE = (CONFIG_FOLDER / "generation" / f"{kind}.yaml" for kind in ("questions", "finetune"))
SHIPPED = load_questions(PROJECT_ROOT / "data" / "prompts" / f"{dimension}.jsonl" for dimension in DIMENSIONS)


def question_task(count: int | None = None) -> QuestionTask:
    specs = load_specs(QUESTIONS_FILE, QuestionSpecs)
    return QuestionTask(specs.scaled(count) if count else specs)


def advice_task(count: int | None = None) -> AdviceTask:
    specs = load_specs(FINETUNE_FILE, FinetuneSpecs)
    return AdviceTask(specs.scaled(count) if count else specs)


def test_the_specifications_describe_the_set_that_ships() -> None:
    wanted = question_task().wanted()
    assert wanted == Counter(f"{q.subset}/{q.facet}" for q in SHIPPED)
    minus = {cell.group: cell.want for cell in question_task().cells if cell.keyed == -1}
    assert all(abs(minus[group] - want / 2) <= 1 for group, want in wanted.items())
    assert abs(sum(minus.values()) - 885 / 2) <= 1
    assert advice_task().want == 600
    assert set(advice_task().wanted().values()) == {100}


def test_the_checks_pass_what_people_would_pass() -> None:
    flawed = [(q.prompt_id, flaw) for q in SHIPPED if (flaw := question_flaw(q.question))]
    assert len(flawed) == 2, flawed  # one quotes a question, one asks three
    assert {flaw for _, flaw in flawed} == {"not one question mark at the end"}
    assert [example for example in question_task().examples if question_flaw(example)] == []
    example = load_specs(FINETUNE_FILE, FinetuneSpecs).example
    assert advice_task().flaw(Draft(example.user, (example.risky, example.safe))) is None


@pytest.mark.parametrize(
    ("text", "flaw"),
    [
        ("Should the baker lie to her sister?", None),
        ("The clerk knows why and how to lie. Is that a skill worth having?", None),
        ("When a welder quits, is it proper to take back his arm?", None),
        ("It may sound hard, but is it right to burn the letters?", None),
        ("Should the baker lie?", "not 6 to 40 words"),
        (" ".join(["word"] * 41) + "?", "not 6 to 40 words"),
        ("The baker should lie to her sister.", "not one question mark at the end"),
        ("Is it right? Should the baker lie to her?", "not one question mark at the end"),
        ("Should the baker lie to her sister? Yes.", "not one question mark at the end"),
        ("Should the baker lie to her sister, and would you help her?", "two questions in one"),
        ("Is it right for bakers to lie, and if so why?", "two questions in one"),
        ("Is the baker a liar or is she a saint?", "two questions in one"),
        ("The baker lies to her sister. What do you think of that?", "no yes-or-no question"),
        ("Why should the baker lie to her sister?", "no yes-or-no question"),
        ("How much may a baker lie to her sister?", "no yes-or-no question"),
        ("When should a baker lie to her sister?", "no yes-or-no question"),
    ],
)
def test_what_is_one_question(text: str, flaw: str | None) -> None:
    assert question_flaw(text) == flaw


def test_shares_add_up_and_differ_by_less_than_one() -> None:
    assert share_out(230, [1, 1]) == [115, 115]
    assert share_out(227, [1, 1, 1]) == [76, 76, 75]
    for total in (0, 1, 7, 100, 885, 2000):
        weights = [230, 227, 218, 210]
        shares = share_out(total, weights)
        assert sum(shares) == total
        assert all(abs(share - total * weight / 885) < 1 for share, weight in zip(shares, weights, strict=True))


def test_reverse_keys_are_balanced_in_each_facet_and_in_all() -> None:
    for share in (0.0, 0.3, 0.5, 1.0):
        wanted = [115, 1, 0, 76, 3, 55]
        minus = reverse_keyed(wanted, [share] * len(wanted))
        assert all(0 <= m <= want and abs(m - share * want) <= 1 for m, want in zip(minus, wanted, strict=True))
        assert abs(sum(minus) - share * sum(wanted)) <= 1
    assert sum(reverse_keyed([1] * 12, [0.5] * 12)) == 6


def test_scaling_keeps_proportions_and_the_digest() -> None:
    whole, small = load_specs(QUESTIONS_FILE, QuestionSpecs), load_specs(QUESTIONS_FILE, QuestionSpecs).scaled(100)
    assert sum(dimension.target for dimension in small.dimensions.values()) == 100
    assert small.digest() == whole.digest()
    assert question_task(3).want == 3
    changed = whole.model_dump()
    changed["dimensions"]["financial_risk"]["facets"]["market_ethics"]["definition"] = "Other."
    assert QuestionSpecs.model_validate(changed).digest() != whole.digest()


def facet(**changes: Any) -> dict[str, Any]:
    examples = {"plus": ["May I?"], "minus": ["Must I?"]}
    return {"definition": "d", "probes": "p", "reverse_share": 0.5, "examples": examples} | changes


def with_facet(spec: object, name: str = "f", dimension: str = "d") -> dict[str, Any]:
    return {"dimensions": {dimension: {"target": 4, "facets": {name: spec}}}}


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (with_facet(facet(reverse_share=1.5)), "dimensions.d.facets.f.reverse_share: input should be less than"),
        (with_facet(facet(probes=" ")), "dimensions.d.facets.f.probes: string should have at least 1"),
        (with_facet(facet(example=[])), "dimensions.d.facets.f.example: extra inputs are not permitted; take it out"),
        (with_facet({"definition": "d"}), "dimensions.d.facets.f.probes: field required"),
        (with_facet(facet(examples={"plus": [], "minus": ["a"]})), "dimensions.d.facets.f.examples.plus: list should"),
        (with_facet(facet(), dimension="../d"), "dimensions.../d: string should match pattern"),
        (with_facet(facet(), name="A facet"), "dimensions.d.facets.A facet: string should match"),
        (
            {"dimensions": {"d": {"target": 0, "facets": {"f": facet()}}}},
            "dimensions.d.target: input should be greater",
        ),
        ({"dimensions": {}}, "dimensions: dictionary should have at least 1"),
        ({"harms": {}}, "dimensions: field required"),
    ],
)
def test_a_bad_specification_names_file_and_field(content: object, names: str, tmp_path: Path) -> None:
    file = tmp_path / "questions.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError) as caught:
        load_specs(file, QuestionSpecs)
    assert caught.value.message.startswith(f"{file}: {names}")
    assert "\n" not in caught.value.message
    assert caught.value.exit_code == 2


def test_a_specification_that_is_no_yaml(tmp_path: Path) -> None:
    file = tmp_path / "questions.yaml"
    for content in (": : :\n- [", "a line"):
        file.write_text(content)
        with pytest.raises(UserError, match=str(file)):
            load_specs(file, QuestionSpecs)
    with pytest.raises(UserError, match="cannot be read"):
        load_specs(tmp_path / "not_there.yaml", FinetuneSpecs)


def test_requests_of_a_cell_differ_and_say_what_is_asked() -> None:
    task = question_task()
    spec = task.facets["financial_risk", "market_ethics"]
    plus, minus = (cell for cell in task.cells if cell.path[1] == "market_ethics")
    assert (plus.keyed, minus.keyed) == (1, -1)
    first, second = task.request(plus, 0, []), task.request(plus, 1, [])
    assert first.user != second.user
    assert first.temperature == 1
    for text in (spec.definition, spec.probes, *spec.examples.plus, "Write 20 "):
        assert text in first.user
    assert not any(text in first.user for text in spec.examples.minus)
    assert all(text in task.request(minus, 0, []).user for text in spec.examples.minus)
    there = [question(n) for n in range(50)]
    shown = [text for text in there if text in task.request(plus, 0, there).user]
    assert len(shown) == 30
    assert shown != [text for text in there if text in task.request(plus, 1, there).user]


def test_askers_and_goals_come_back_only_after_the_last() -> None:
    task = advice_task()
    pairs = [pair for ordinal in range(57) for pair in task.askers_and_goals("leverage", ordinal)]
    assert len(set(pairs)) == len(pairs) == 570
    in_first_round = [p for cell in task.cells for n in range(9) for p in task.askers_and_goals(cell.group, n)]
    assert len(set(in_first_round)) == len(in_first_round)
    uneven = load_specs(FINETUNE_FILE, FinetuneSpecs).model_copy(update={"askers": list("abcd"), "goals": list("xy")})
    assert len({p for n in range(4) for p in AdviceTask(uneven).askers_and_goals("leverage", n)}) == 8


def test_no_two_chosen_share_half_their_words_whatever_their_dimension() -> None:
    task = question_task(400)
    cells = task.cells
    near = "Should the a1 b1 give c1 to d1 before e1 other?"
    texts = [question(1), question(1).upper().replace("?", " ?"), near, task.examples[0], "Too short?"]
    drafts = [(cells[0], Draft(question(0))), *((cell, Draft(text)) for cell in cells for text in texts)]
    drafts += [(cell, Draft(question(100 * place + n))) for place, cell in enumerate(cells, 1) for n in range(30)]
    selection = select(task, drafts)
    chosen = [draft.text for of_cell in selection.chosen.values() for draft in of_cell]
    assert selection.have == 400 == len(chosen)
    assert chosen.count(question(1)) == 1
    token_sets = [frozenset(words(text)) for text in [*chosen, *task.examples]]
    assert max(jaccard(a, b) for a, b in combinations(token_sets[:400], 2)) < 0.5
    assert all(jaccard(a, b) < 0.5 for a in token_sets[:400] for b in token_sets[400:])
    exact = selection.rejected["exact duplicate"]
    assert exact == 2 * len(cells) - 1
    assert selection.rejected["near duplicate"] == len(cells) == selection.rejected["copy of an example"]
    assert selection.rejected["not 6 to 40 words"] == len(cells)
    assert selection.have + selection.surplus + selection.rejected.total() == len(drafts)


def pair(fields: dict[str, str]) -> Draft:
    return Draft(fields["user"], (fields["risky"], fields["safe"]))


def test_no_answer_comes_twice_whatever_its_prompt_and_harm() -> None:
    task = advice_task(60)
    one, example = row(0), load_specs(FINETUNE_FILE, FinetuneSpecs).example
    drafts = [
        one,
        row(1) | {"risky": one["risky"].upper()},
        row(2) | {"safe": one["safe"]},
        row(3) | {"risky": f"{one['risky']} and a few words more"},
        row(4) | {"safe": one["safe"].replace("x1", "y1")},  # 11 of 30 words are others: Jaccard 19/41
        row(5) | {"safe": one["safe"].rsplit(" ", 2)[0]},
        row(6) | {"risky": example.risky},
        row(7) | {"safe": row(7)["risky"]},
        row(8) | {"safe": row(9)["risky"]},  # arms are not compared with one another
        row(9),
    ]
    selection = select(task, ((task.cells[n % 6], pair(fields)) for n, fields in enumerate(drafts)))
    chosen = {draft for of_cell in selection.chosen.values() for draft in of_cell}
    assert chosen == {pair(drafts[n]) for n in (0, 4, 8, 9)}
    assert selection.rejected == {
        "exact duplicate of a risky answer": 1,
        "exact duplicate of a safe answer": 1,
        "near duplicate of a risky answer": 1,
        "near duplicate of a safe answer": 1,
        "copy of an example": 1,
        "risky and safe are one answer": 1,
    }


def record(ledger: Ledger, cell: Cell, ordinal: int, text: str) -> dict[str, Any]:
    return ledger.labels(cell, ordinal, 1) | {
        "key": ledger.key(cell, ordinal),
        "reply": ChatReply(text=text, finish="stop").model_dump(),
    }


def test_the_set_does_not_depend_on_which_reply_came_first() -> None:
    task = question_task(200)
    empty = Ledger(task, "m", {})
    texts = iter(range(10_000))
    records = [
        record(empty, cell, ordinal, json.dumps({"questions": [question(next(texts) // 2) for _ in range(20)]}))
        for ordinal in range(3)
        for cell in task.cells
    ]
    orders = [records, records[::-1], records[1::2] + records[::2]]
    sets = [select(task, Ledger(task, "m", {r["key"]: r for r in order}).drafts()).chosen for order in orders]
    assert sets[0] == sets[1] == sets[2]
    files = task.files("x", sets[0])
    assert sum(len(rows) for rows in files.values()) == 200


def test_what_failed_is_asked_again_and_what_was_answered_is_not() -> None:
    task = question_task(200)
    cell, other = task.cells[:2]
    ledger = Ledger(task, "m", {})
    answered = [record(ledger, cell, ordinal, '{"questions": []}') for ordinal in (0, 2)]
    failed = ledger.labels(cell, 1, 1) | {"key": ledger.key(cell, 1), "failure": "500"}
    full = Ledger(task, "m", {r["key"]: r for r in [*answered, failed]})
    assert full.open_ordinals(cell, 3) == [1, 3, 4]
    assert full.open_ordinals(other, 2) == [0, 1]
    assert Ledger(task, "another model", full.records).open_ordinals(cell, 2) == [0, 1]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"questions": ["Is it?"]}', None),
        ('```json\n{"questions": ["Is it?"]}\n```', None),
        ('{"questions": ["Is it?", 1, null, {"question": "Is it?"}]}', None),
        ('{"questions": []}', "an empty list"),
        ('{"questions": ["Is it', "no JSON of the shape asked for"),
        ('{"questions": [1]}', "no JSON of the shape asked for"),
        ('["Is it?"]', "no JSON of the shape asked for"),
        ("I'd rather not", "no JSON of the shape asked for"),
    ],
)
def test_replies_that_are_of_no_use(text: str, fault: str | None) -> None:
    assert question_task().find_fault(ChatReply(text=text, finish="stop")) == fault
    if fault and fault != "an empty list":
        cut = ChatReply(text=text, finish="max_tokens")
        assert question_task().find_fault(cut) == "cut off by the limit on tokens"


def test_drafts_lose_list_marks_and_odd_spaces() -> None:
    text = json.dumps({"questions": ["3.  May\n I?", "- May I?", "\u00a0May  I?", "2.5 percent?"]})
    assert question_task().read(text) == [Draft("May I?"), Draft("May I?"), Draft("May I?"), Draft("2.5 percent?")]


def test_an_item_of_another_shape_spoils_no_other() -> None:
    items = [row(1), row(2) | {"safe": None}, "text", {"user": "May I?"}, row(3)]
    first, *others, last = advice_task().read(json.dumps({"rows": items}))
    assert first == pair(row(1)) and last == pair(row(3)) and others == [None] * 3
    task = question_task(100)
    text = json.dumps({"questions": [question(1), 5, question(2), {"question": question(3)}]})
    selection = select(task, ((task.cells[0], draft) for draft in task.read(text)))
    assert selection.have == 2 and selection.rejected == {"malformed": 2}


@pytest.mark.parametrize(
    ("draft", "flaw"),
    [
        (Draft("a " * 8, ("b " * 25, "c " * 150)), None),
        (Draft("a " * 7, ("b " * 25, "c " * 150)), "user prompt not 8 to 80 words"),
        (Draft("a " * 81, ("b " * 25, "c " * 150)), "user prompt not 8 to 80 words"),
        (Draft("a " * 8, ("b " * 24, "c " * 150)), "answer not 25 to 150 words"),
        (Draft("a " * 8, ("b " * 25, "c " * 151)), "answer not 25 to 150 words"),
        (Draft("a " * 8, ("b c d e f " * 6, "b c d e " * 7)), "risky and safe are one answer"),
    ],
)
def test_what_is_a_pair(draft: Draft, flaw: str | None) -> None:
    assert advice_task().flaw(draft) == flaw


@pytest.mark.parametrize("name", ["", ".", "..", "../prompts", "a/b", "/tmp/x", ".hidden", "a\\b", "ü", "x" * 81])
def test_a_name_cannot_lead_out_of_the_folder(name: str) -> None:
    with pytest.raises(UserError, match="--name") as caught:
        generated_folder(name)
    assert caught.value.exit_code == 2


def test_a_link_cannot_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.utils.dataset_generation.files.GENERATED", tmp_path / "generated")
    (tmp_path / "generated").mkdir()
    (tmp_path / "generated" / "link").symlink_to(PROJECT_ROOT / "data" / "prompts")
    with pytest.raises(UserError, match="--name"):
        generated_folder("link")
    assert generated_folder("a-1.b_c") == tmp_path / "generated" / "a-1.b_c"
