"""A state machine that is accepted works; one that cannot work is refused with everything that is wrong with it."""

from __future__ import annotations

import hashlib
import json
import pickle
import tomllib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger import (
    InvalidCommand,
    InvalidStateMachine,
    LedgerError,
    Rejected,
    StateMachine,
    Transition,
    TransitionRefused,
    lifecycle,
    on,
)
from ledger.core.lifecycle import ACCOUNT, HOLD, STATES_MAX, TRANSITIONS_MAX
from ledger.lifecycle import FILE_BYTES_MAX, SHIPPED, load, shipped, shipped_machines

PARCEL = StateMachine(
    "parcel",
    "packed",
    ("packed", "sent", "received", "lost"),
    (
        on("label", "packed"),
        on("send", "packed", to="sent"),
        on("receive", "sent", to="received"),
        on("lose", "packed", "sent", to="lost"),
    ),
    final=("received", "lost"),
)

PARCEL_TOML = """
name = "parcel"
initial = "packed"
states = ["packed", "sent", "received", "lost"]
final = ["received", "lost"]
transitions = [
    { event = "label", from = "packed" },
    { event = "send", from = "packed", to = "sent" },
    { event = "receive", from = ["sent"], to = "received" },
    { event = "lose", from = ["packed", "sent"], to = "lost" },
]
"""


def parcel(**changed: Any) -> dict[str, Any]:
    """The parcel's declaration with other values; those that are None left out."""
    return {key: value for key, value in (PARCEL.as_mapping() | changed).items() if value is not None}


def steps(*steps: tuple[str, str, str]) -> list[dict[str, Any]]:
    """Transitions as a declaration has them."""
    return [{"event": event, "from": source, "to": target} for source, event, target in steps]


def also(*more: dict[str, Any]) -> list[dict[str, Any]]:
    """The parcel's transitions, and more."""
    return [*PARCEL.as_mapping()["transitions"], *more]


def toml(machine: StateMachine) -> str:
    """The declaration as TOML: names and lists of names are written there as in JSON."""
    declaration = machine.as_mapping()
    transitions = [
        "{ " + ", ".join(f"{key} = {json.dumps(value)}" for key, value in each.items()) + " }"
        for each in declaration.pop("transitions")
    ]
    lines = [f"{key} = {json.dumps(value)}" for key, value in declaration.items()]
    return "\n".join([*lines, f"transitions = [{', '.join(transitions)}]"])


# What a machine does


def test_events_lead_on() -> None:
    """An event leads from one of its states to the next, or leaves the state as it is."""
    assert PARCEL.advance("packed", "label") == "packed"
    assert PARCEL.advance("packed", "send") == "sent"
    assert PARCEL.advance("sent", "receive") == "received"
    assert PARCEL.advance("sent", "lose") == PARCEL.advance("packed", "lose") == "lost"


def test_allowed_in_order_of_declaration() -> None:
    """What may follow is told in the order in which it was declared; nothing follows a final state."""
    assert PARCEL.events == ("label", "send", "receive", "lose")
    assert [PARCEL.allowed(state) for state in PARCEL.states] == [
        ("label", "send", "lose"),
        ("receive", "lose"),
        (),
        (),
    ]


def test_refusal_says_all() -> None:
    """A refusal names state, event, stream and what would have been allowed, for programs and for people."""
    with pytest.raises(TransitionRefused) as refusal:
        PARCEL.advance("packed", "receive", stream="P-17")

    assert isinstance(refusal.value, Rejected)
    assert (refusal.value.code, refusal.value.reason, refusal.value.retryable) == (
        "transition_refused",
        "transition_refused",
        False,
    )
    assert refusal.value.fields == {
        "machine": "parcel",
        "state": "packed",
        "event": "receive",
        "allowed": ["label", "send", "lose"],
        "stream": "P-17",
    }
    assert str(refusal.value) == "parcel P-17 is packed: receive is refused; allowed: label, send, lose."


def test_refusal_at_the_end() -> None:
    """Where nothing may follow, the refusal says so; an event of no machine is refused as any other."""
    with pytest.raises(TransitionRefused) as refusal:
        PARCEL.advance("lost", "fnord")

    assert str(refusal.value) == "parcel is lost: fnord is refused; allowed: nothing."


@pytest.mark.parametrize("ask", [PARCEL.allowed, lambda state: PARCEL.advance(state, "send")])
def test_unknown_state(ask: Callable[[str], object]) -> None:
    """A state that the machine does not have is the caller's mistake, not a refusal."""
    with pytest.raises(InvalidCommand, match=r"parcel has no state 'Sent'; it has packed, sent, received, lost"):
        ask("Sent")


@pytest.mark.parametrize(
    "error",
    [
        TransitionRefused("parcel", "sent", "send", ["receive"], stream="P-17"),
        InvalidStateMachine("parcel", ["it has no states", "it is odd"], where="parcel.toml"),
    ],
)
def test_errors_travel(error: LedgerError) -> None:
    """Errors arrive in another process as they were raised."""
    arrived = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own

    assert (type(arrived), arrived.fields, str(arrived)) == (type(error), error.fields, str(error))


def test_machines_do_not_change() -> None:
    """A machine is frozen, can be a key, and travels."""
    with pytest.raises(AttributeError):
        PARCEL.initial = "lost"  # type: ignore[misc]

    copy = pickle.loads(pickle.dumps(PARCEL))  # noqa: S301 - our own
    assert (copy, hash(copy)) == (PARCEL, hash(PARCEL))
    assert PARCEL.advance("packed", "send") == copy.advance("packed", "send")


def test_same_meaning_same_fingerprint() -> None:
    """Neither the order of a declaration nor the grouping of its transitions makes another machine."""
    other = StateMachine(
        "parcel",
        "packed",
        ("lost", "received", "sent", "packed"),
        (
            on("lose", "sent", to="lost"),
            on("lose", "packed", to="lost"),
            on("label", "packed", to="packed"),
            on("receive", "sent", to="received"),
            on("send", "packed", to="sent"),
        ),
        final=("lost", "received"),
    )

    assert (other, hash(other), other.fingerprint()) == (PARCEL, hash(PARCEL), PARCEL.fingerprint())
    assert PARCEL != "parcel"


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "packet"},
        {"initial": "sent", "transitions": also(*steps(("sent", "back", "packed")))},
        {
            "states": [*PARCEL.states, "torn"],
            "final": [*PARCEL.final, "torn"],
            "transitions": also(*steps(("sent", "tear", "torn"))),
        },
        {"transitions": also(*steps(("sent", "label", "sent")))},
    ],
)
def test_other_meaning_other_fingerprint(changed: dict[str, Any]) -> None:
    """Whatever a machine allows or forbids is in its fingerprint."""
    other = StateMachine.from_mapping(parcel(**changed))

    assert other != PARCEL
    assert other.fingerprint() != PARCEL.fingerprint()


def test_fingerprint_is_for_ever() -> None:
    """Streams remember the fingerprint of their machine: it must not change from release to release."""
    canonical = (
        b'{"final":["off"],"initial":"on","name":"lamp","states":["off","on"],'
        b'"transitions":[["on","dim","on"],["on","switch","off"]]}'
    )
    lamp = StateMachine("lamp", "on", ("on", "off"), (on("switch", "on", to="off"), on("dim", "on")), ("off",))

    assert lamp.fingerprint() == hashlib.sha256(canonical).hexdigest()


def test_diagram() -> None:
    """The drawing has one arrow per pair of states."""
    assert PARCEL.diagram() == (
        "stateDiagram-v2\n"
        "    [*] --> packed\n"
        "    packed --> packed: label\n"
        "    packed --> sent: send\n"
        "    sent --> received: receive\n"
        "    packed --> lost: lose\n"
        "    sent --> lost: lose\n"
        "    received --> [*]\n"
        "    lost --> [*]\n"
    )


def test_diagram_of_words_that_mean_something_else() -> None:
    """A state named as a keyword of Mermaid is drawn under an alias."""
    machine = StateMachine("loan", "note", ("note", "default"), (on("fail", "note", to="default"),), ("default",))

    assert machine.diagram().splitlines()[1:] == [
        '    state "note" as note_',
        '    state "default" as default_',
        "    [*] --> note_",
        "    note_ --> default_: fail",
        "    default_ --> [*]",
    ]


# What is wrong with a machine

RULES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no states": (
        {"states": [], "final": [], "transitions": []},
        ["it has no states", "initial state 'packed' is unknown"],
    ),
    "unknown initial": ({"initial": "pakced"}, ["initial state 'pakced' is unknown"]),
    "unknown final": ({"final": ["received", "lost", "gone"]}, ["final state 'gone' is unknown"]),
    "unknown source": (
        {"transitions": also(*steps(("gone", "find", "sent")))},
        ["event 'find' leads from unknown state 'gone'"],
    ),
    "unknown target": (
        {"transitions": also(*steps(("sent", "find", "found")))},
        ["event 'find' leads to unknown state 'found'"],
    ),
    "no source": (
        {"transitions": also({"event": "find", "from": [], "to": "sent"})},
        ["event 'find' comes from no state"],
    ),
    "unreachable": (
        {"states": [*PARCEL.states, "burnt"], "final": [*PARCEL.final, "burnt"]},
        ["state 'burnt' cannot be reached from 'packed'"],
    ),
    "dead end": (
        {"final": ["lost"]},
        ["state 'received' is a dead end; mark it final or let an event lead out of it"],
    ),
    "dead end that turns round itself": (
        {"final": ["lost"], "transitions": also({"event": "rate", "from": "received"})},
        ["state 'received' is a dead end; mark it final or let an event lead out of it"],
    ),
    "final and not over": (
        {"transitions": also(*steps(("lost", "find", "sent"), ("lost", "pay", "lost")))},
        ["state 'lost' is final and yet has events: 'find', 'pay'"],
    ),
    "two ways": (
        {"transitions": also(*steps(("sent", "receive", "lost")))},
        ["state 'sent' has event 'receive' more than once, to 'received' and to 'lost'"],
    ),
    "the same way twice": (
        {"transitions": also(*steps(("sent", "receive", "received")))},
        ["state 'sent' has event 'receive' more than once, to 'received'"],
    ),
    "state twice": ({"states": [*PARCEL.states, "sent"]}, ["state 'sent' is named twice"]),
    "final twice": ({"final": [*PARCEL.final, "lost"]}, ["final state 'lost' is named twice"]),
    "name of the machine": (
        {"name": "Parcel"},
        ["machine name 'Parcel' is not 1 to 63 of a-z, 0-9 and _, beginning with a letter"],
    ),
    "too many states": (
        {"states": [f"s{number}" for number in range(STATES_MAX + 1)]},
        [f"it has more than {STATES_MAX} states"],
    ),
    "too many transitions": (
        {"transitions": [{"event": f"e{number}", "from": "sent"} for number in range(TRANSITIONS_MAX + 1)]},
        [f"it has more than {TRANSITIONS_MAX} transitions"],
    ),
    "too many sources": (
        {"transitions": [{"event": "e", "from": ["sent"] * (TRANSITIONS_MAX + 1)}]},
        [f"it has more than {TRANSITIONS_MAX} transitions"],
    ),
    "key unknown": (
        {"intial": "packed"},
        ["'intial' is not a key; the keys are name, initial, states, final, transitions"],
    ),
    "key of a transition unknown": (
        {"transitions": also({"event": "wave", "from": "sent", "too": "sent"})},
        ["transitions[4].'too' is not a key; the keys are event, from, to"],
    ),
    "key missing": ({"initial": None, "transitions": None}, ["initial is missing", "transitions is missing"]),
    "key of a transition missing": (
        {"transitions": [{"to": "sent"}]},
        ["transitions[0].event is missing", "transitions[0].from is missing"],
    ),
    "types": (
        {"initial": 1, "states": "packed", "final": [True], "transitions": {}},
        [
            "initial is not text",
            "states is not a list of text",
            "final is not a list of text",
            "transitions is not a list of tables",
        ],
    ),
    "types of a transition": (
        {"transitions": [{"event": 1, "from": [2], "to": 3}, {"event": "send", "from": 4}]},
        [
            "transitions[0].event is not text",
            "transitions[0].from is not text or a list of text",
            "transitions[0].to is not text",
            "transitions[1].from is not text or a list of text",
        ],
    ),
    "transition of another type": ({"transitions": ["send"]}, ["transitions is not a list of tables"]),
}  # fmt: skip
"""What is changed in a good declaration, and all the problems that follow."""


@pytest.mark.parametrize("rule", RULES)
def test_problems_of_a_declaration(rule: str) -> None:
    """Every rule has its problem, and a breach of one is not reported as that of another."""
    changed, problems = RULES[rule]

    with pytest.raises(InvalidStateMachine) as refusal:
        StateMachine.from_mapping(parcel(**changed))

    assert refusal.value.problems == problems
    assert (refusal.value.code, refusal.value.where) == ("invalid_state_machine", "")


@pytest.mark.parametrize("name", ["", "Sent", "1st", "_sent", "in transit", "in-transit", "sent\n", "é", "x" * 64])
def test_names_of_states_and_events(name: str) -> None:
    """Only short, plain, lower-case identifiers are names."""
    transitions = also(*steps(("sent", name, name)))

    with pytest.raises(InvalidStateMachine) as refusal:
        StateMachine.from_mapping(
            parcel(states=[*PARCEL.states, name], final=[*PARCEL.final, name], transitions=transitions)
        )

    assert refusal.value.problems == [
        f"{what} name {name!r} is not 1 to 63 of a-z, 0-9 and _, beginning with a letter" for what in ("state", "event")
    ]


@pytest.mark.parametrize("name", ["a", "x" * 63, "in_transit", "a1__"])
def test_names_at_the_limits(name: str) -> None:
    """Names of 1 to 63 characters are names."""
    assert StateMachine(name, name, (name,), (), (name,)).allowed(name) == ()


def test_sizes_at_the_limits() -> None:
    """As many states and transitions as are allowed can be had."""
    states = tuple(f"s{number}" for number in range(STATES_MAX))
    ahead = tuple(on("go", here, to=there) for here, there in pairwise(states))
    around = tuple(on(f"e{number}", "s0") for number in range(TRANSITIONS_MAX - len(ahead)))

    machine = StateMachine("long", "s0", states, ahead + around, states[-1:])

    assert len(machine.allowed("s0")) == TRANSITIONS_MAX - len(ahead) + 1


def test_all_problems_at_once() -> None:
    """Whoever made five mistakes is told of five; an unknown key hides none of them."""
    with pytest.raises(InvalidStateMachine) as refusal:
        StateMachine.from_mapping({
            "name": "lamp",
            "initial": "on",
            "states": ["on", "Off", "broken"],
            "finals": ["broken"],
            "transitions": steps(("on", "switch", "Off"), ("on", "switch", "of")),
        })  # fmt: skip

    assert refusal.value.problems == [
        "'finals' is not a key; the keys are name, initial, states, final, transitions",
        "state name 'Off' is not 1 to 63 of a-z, 0-9 and _, beginning with a letter",
        "event 'switch' leads to unknown state 'of'",
        "state 'on' has event 'switch' more than once, to 'Off' and to 'of'",
        "state 'Off' is a dead end; mark it final or let an event lead out of it",
        "state 'broken' cannot be reached from 'on'",
        "state 'broken' is a dead end; mark it final or let an event lead out of it",
    ]
    assert str(refusal.value).startswith("State machine lamp is not valid: 'finals' is not a key;")


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"name": None}, "name is not text"),
        ({"initial": ["packed"]}, "initial is not text"),
        ({"states": ["packed"]}, "states is not a tuple of text"),
        ({"states": "packed"}, "states is not a tuple of text"),
        ({"final": (1,)}, "final is not a tuple of text"),
        ({"transitions": (("send", "packed", "sent"),)}, "transitions is not a tuple of transitions"),
        ({"transitions": (on("send", "packed"), Transition("send", "packed", "sent"))},  # type: ignore[arg-type]
         "transitions[1] is not made of text"),
        ({"transitions": (on("send", "packed", to=1),)}, "transitions[0] is not made of text"),  # type: ignore[arg-type]
        ({"transitions": (on(["send"], "packed"),)}, "transitions[0] is not made of text"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_types_in_code(changed: dict[str, Any], problem: str) -> None:
    """A declaration in code by someone who checks no types is refused in the same way."""
    fields: dict[str, Any] = {
        "name": "parcel",
        "initial": "packed",
        "states": PARCEL.states,
        "transitions": PARCEL.transitions,
        "final": PARCEL.final,
    }

    with pytest.raises(InvalidStateMachine) as refusal:
        StateMachine(**fields | changed)

    assert refusal.value.problems == [problem]


# Files


def test_files_say_the_same(tmp_path: Path) -> None:
    """Code, TOML and JSON make the same machine."""
    (tmp_path / "parcel.toml").write_text(PARCEL_TOML)
    (tmp_path / "parcel.json").write_text(json.dumps(PARCEL.as_mapping()))

    assert load(tmp_path / "parcel.toml") == PARCEL
    assert load(str(tmp_path / "parcel.json")) == PARCEL


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.toml", b"name = 'a'\nname = 'b'", "the file is not TOML: Cannot overwrite a value"),
        ("a.toml", b"name = \xff", "the file is not TOML: 'utf-8' codec can't decode"),
        ("a.json", b"{", "the file is not JSON: Expecting property name"),
        ("a.json", b'{"name": "a", "name": "b"}', "the file is not JSON: 'name' is given twice"),
        ("a.json", b"[" * 100_000, "the file is not JSON: "),
        ("a.json", b'["name"]', "the file does not hold a table"),
        ("a.json", b'{"name": 1}', "This state machine is not valid: name is not text; initial is missing; "),
        ("a.toml", PARCEL_TOML.replace("sent", "lost", 1).encode(), "State machine parcel is not valid: state 'lost'"),
        ("a.toml", b"#" * (FILE_BYTES_MAX + 1), f"the file has more than {FILE_BYTES_MAX} bytes"),
        ("a.yaml", b"name: a", "the file's name does not end in .toml or .json"),
        ("toml", b"", "the file's name does not end in .toml or .json"),
    ],
)
def test_files_that_are_none(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    """A file that does not hold a machine is refused with its path and what is wrong with it."""
    path = tmp_path / name
    path.write_bytes(content)

    with pytest.raises(InvalidStateMachine) as refusal:
        load(path)

    assert refusal.value.where == str(path)
    assert str(refusal.value).startswith(f"{path}: ")
    assert said in str(refusal.value)


def test_file_that_is_not_there(tmp_path: Path) -> None:
    """A file that cannot be read is no state machine's fault."""
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "parcel.toml")


# Properties


def problems_of(declaration: dict[str, Any]) -> list[str]:
    """All that is wrong with a declaration."""
    try:
        StateMachine.from_mapping(declaration)
    except InvalidStateMachine as error:
        return error.problems
    return []


names = st.sampled_from(["a", "b", "c", "d", "e"])
events = st.sampled_from(["x", "y", "z"])


@st.composite
def machines(draw: st.DrawFn) -> StateMachine:
    """Machines that are right by construction: a tree of ways, a way on from each leaf that is not final, and more."""
    states = [f"s{number}" for number in range(draw(st.integers(1, 7)))]
    moves = {(draw(st.sampled_from(states[:number])), f"to_{state}"): state
             for number, state in enumerate(states) if number}  # fmt: skip
    leaves = [state for state in states if state not in {source for source, _ in moves}]
    final = [leaf for leaf in leaves if len(states) == 1 or draw(st.booleans())]
    running = [state for state in states if state not in final]
    moves |= {(leaf, "on"): draw(st.sampled_from([state for state in states if state != leaf]))
              for leaf in leaves if leaf in running}  # fmt: skip
    for event in draw(st.lists(events)) if running else ():
        moves.setdefault((draw(st.sampled_from(running)), event), draw(st.sampled_from(states)))
    transitions = [
        on(event, source, to=None if source == target and draw(st.booleans()) else target)
        for (source, event), target in moves.items()
    ]
    return StateMachine("drawn", states[0], tuple(states), tuple(draw(st.permutations(transitions))), tuple(final))


@given(machines(), st.lists(events | st.sampled_from(["on", "to_s1", "to_s2", "to_s3"]), max_size=20))
def test_walks_stay_inside(machine: StateMachine, walk: list[str]) -> None:
    """No sequence of events leads out of the states; each is taken or refused as declared, naming what is allowed."""
    declared = {(source, each.event): each.target or source for each in machine.transitions for source in each.sources}
    state = machine.initial
    for event in walk:
        allowed = {known for source, known in declared if source == state}
        assert set(machine.allowed(state)) == allowed
        if event in allowed:
            state = machine.advance(state, event)
            assert state in machine.states
        else:
            with pytest.raises(TransitionRefused) as refusal:
                machine.advance(state, event)
            assert (refusal.value.state, refusal.value.event) == (state, event)
            assert set(refusal.value.allowed) == allowed
            assert len(refusal.value.allowed) == len(allowed)


@given(machines())
def test_every_state_is_reached_and_only_final_ones_end(machine: StateMachine) -> None:
    """By events alone one comes to every state, and on from every one that is not final."""
    reached = {machine.initial}
    for _ in machine.states:
        reached |= {machine.advance(state, event) for state in reached for event in machine.allowed(state)}

    assert reached == set(machine.states)
    for state in machine.states:
        onward = {machine.advance(state, event) for event in machine.allowed(state)}
        assert bool(onward - {state}) == (state not in machine.final)


@given(machines())
def test_round_trips(machine: StateMachine) -> None:
    """What a machine says of itself makes the same machine: as a mapping, as JSON and as TOML."""
    json_text, toml_text = json.dumps(machine.as_mapping()), toml(machine)

    for again in (
        StateMachine.from_mapping(machine.as_mapping()),
        StateMachine.from_mapping(tomllib.loads(toml_text)),
        StateMachine.from_mapping(json.loads(json_text)),
    ):
        assert again == machine
        assert again.as_mapping() == machine.as_mapping()
        assert again.fingerprint() == machine.fingerprint()
        assert again.diagram() == machine.diagram()


@given(
    initial=names,
    states=st.lists(names, max_size=4),
    final=st.lists(names, max_size=3),
    moves=st.lists(st.tuples(names, events, names), max_size=6),
)
def test_accepted_exactly_when_sound(
    initial: str, states: list[str], final: list[str], moves: list[tuple[str, str, str]]
) -> None:
    """Any declaration at all is accepted exactly when it meets the rules, as judged here by other means."""
    reached = {initial}
    for _ in states:
        reached |= {target for source, _, target in moves if source in reached}
    sound = (
        {initial, *final, *(source for source, _, _ in moves), *(target for _, _, target in moves)} <= set(states)
        and reached == set(states)
        and len(states) == len(set(states))
        and len(final) == len(set(final))
        and len(moves) == len({(source, event) for source, event, _ in moves})
        and set(final).isdisjoint(source for source, _, _ in moves)
        and set(states) == set(final) | {source for source, _, target in moves if source != target}
    )
    declaration = {"name": "any", "initial": initial, "states": states, "final": final, "transitions": steps(*moves)}

    problems = problems_of(declaration)

    assert sound == (problems == [])
    assert len(problems) == len(set(problems))


keys = st.sampled_from(["name", "initial", "states", "final", "transitions", "event", "from", "to"]) | st.text(
    max_size=3
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(keys, values, max_size=6))
def test_nonsense_is_refused_properly(declaration: dict[str, Any]) -> None:
    """Whatever a file may hold, the answer is a machine or its problems, never another error."""
    assert problems_of(declaration) or StateMachine.from_mapping(declaration)


# The machines that come with the ledger, and those it goes by itself

OWN = {"account": ACCOUNT, "hold": HOLD}


def machine_named(name: str) -> StateMachine:
    """One that comes with the ledger, or one of its own."""
    return OWN.get(name) or shipped(name)


def test_shipped_are_all() -> None:
    """Each file has its name in the list, in order, and the machine in it bears that name."""
    folder = Path(lifecycle.__file__).parent / "lifecycles"

    assert list(SHIPPED) == sorted(path.stem for path in folder.iterdir())
    assert [shipped(name).name for name in SHIPPED] == list(SHIPPED)
    assert list(shipped_machines()) == list(SHIPPED)
    assert shipped("payment") is shipped("payment")
    assert {name: machine.name for name, machine in OWN.items()} == {name: name for name in OWN}


@pytest.mark.parametrize("name", ["invoice", "", "../lifecycles/user", "Payment", "account", "hold"])
def test_others_are_not_shipped(name: str) -> None:
    """Whoever asks for a machine that is not shipped is told which are."""
    with pytest.raises(InvalidCommand, match=r"is shipped; there are cart, inventory, order, payment, trip, user"):
        shipped(name)


@pytest.mark.parametrize(
    ("name", "events", "state"),
    [
        ("payment", "authorise capture refund_part refund_part refund", "refunded"),
        ("payment", "authorise void", "voided"),
        ("payment", "fail", "failed"),
        ("payment", "authorise capture dispute lose_dispute", "dispute_lost"),
        ("payment", "authorise capture refund_part dispute win_dispute refund", "refunded"),
        ("trip", "accept start end", "ended"),
        ("trip", "start end", "ended"),
        ("trip", "accept cancel", "cancelled"),
        ("order", "pay pack ship deliver return", "returned"),
        ("order", "pay cancel", "cancelled"),
        ("user", "update verify update suspend reinstate update delete", "deleted"),
        ("cart", "add_item add_item apply_coupon check_out", "checked_out"),
        ("cart", "add_item apply_coupon clear add_item remove_item check_out", "checked_out"),
        ("cart", "add_item abandon", "abandoned"),
        ("inventory", "dispatch receive stock", "stocked"),
        ("account", "post hold capture freeze release reverse unfreeze close", "closed"),
        ("hold", "capture capture capture_rest", "captured"),
        ("hold", "capture release_rest_after_capture", "captured"),
        ("hold", "capture release expire_after_capture", "captured"),
        ("hold", "release release_rest", "released"),
        ("hold", "release expire", "expired"),
    ],
)
def test_shipped_journeys(name: str, events: str, state: str) -> None:
    """What should be possible is, from the beginning to an end."""
    machine = machine_named(name)
    reached = machine.initial
    for event in events.split():
        reached = machine.advance(reached, event)

    assert reached == state
    assert state in machine.final


@pytest.mark.parametrize(
    ("name", "state", "event"),
    [
        ("payment", "created", "refund"),
        ("payment", "authorised", "refund_part"),
        ("payment", "captured", "void"),
        ("payment", "voided", "capture"),
        ("payment", "refunded", "refund"),
        ("payment", "disputed", "refund"),
        ("trip", "requested", "end"),
        ("trip", "accepted", "end"),
        ("trip", "started", "cancel"),
        ("order", "placed", "ship"),
        ("order", "packed", "deliver"),
        ("order", "shipped", "cancel"),
        ("user", "deleted", "update"),
        ("user", "suspended", "update"),
        ("user", "registered", "reinstate"),
        ("cart", "empty", "apply_coupon"),
        ("cart", "empty", "check_out"),
        ("cart", "checked_out", "apply_coupon"),
        ("cart", "abandoned", "add_item"),
        ("inventory", "announced", "receive"),
        ("inventory", "in_transit", "stock"),
        ("account", "frozen", "post"),
        ("account", "frozen", "hold"),
        ("account", "frozen", "capture"),
        ("account", "frozen", "close"),
        ("account", "closed", "reverse"),
        ("account", "closed", "change"),
        ("hold", "released", "capture"),
        ("hold", "captured", "release"),
        ("hold", "expired", "capture"),
    ],
)
def test_shipped_refusals(name: str, state: str, event: str) -> None:
    """What must not be possible is not."""
    with pytest.raises(TransitionRefused):
        machine_named(name).advance(state, event)
