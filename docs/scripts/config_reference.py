"""The configuration reference as Markdown, from the files of conf/, the schemas and the signatures of what they build.

python docs/scripts/config_reference.py        (docs/conf.py calls ``document``)
"""

import inspect
import json
import re
import sys
import types
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

import fcnlab
from fcnlab.config import schemas
from fcnlab.config.components import DIRECTIVES, dotted_name, locate
from fcnlab.config.external_settings import external_class
from fcnlab.config.help_texts import SWEEP_GROUPS
from fcnlab.config.locations import CONF
from fcnlab.config.ranges import describe_type, description_of
from fcnlab.config.validation import KEYWORD_ARGUMENTS_FROM_CODE, POSITIONAL_ARGUMENTS_FROM_CODE
from fcnlab.verbs import VERBS

ROOTS = {verb: getattr(schemas, f"{verb.capitalize()}Config") for verb in VERBS}
EXPERIMENT = "experiment"  # the group whose options set keys of other groups: their files are shown as they are
CODE = re.compile(
    r"(?P<quoted>`[^`]+`)"
    r"|(?P<document>docs/(?P<page>[\w-]+/[\w-]+)\.md)"
    r"|(?<![\w`/])[\w./]+=(?:\[[^\]]*\]|[^\s,;:()]*[\w\])])"  # an override
    r"|(?<![\w`/.*])(?:\w*_\w+|[A-Z]+/[\w/.]+)(?:\(\))?"  # a name
)


@dataclass(frozen=True)
class Setting:
    """A key of a file: its value as the file has it, and the comments beside and above it."""

    value: str
    comment: str = ""
    in_file: bool = True


@dataclass(frozen=True)
class Option:
    """A file of conf/: its header, its settings and the comments of its mappings by path, and its options of groups."""

    header: str
    settings: Mapping[str, Setting]
    comments: Mapping[str, str]
    defaults: Mapping[str, str | None]


def document() -> str:
    """Return the Markdown of all commands, groups, options and settings."""
    parts = [*_commands(), *_command_settings()]
    for group in groups():
        parts += _experiments() if group == EXPERIMENT else _group(group)
    return "\n".join([*parts, *_base()])


# What the files contain


def groups() -> list[str]:
    """Return the config groups, such as ``model/backbone``, in the order of the commands' defaults; others follow."""
    names = {str(path.parent.relative_to(CONF)) for path in CONF.glob("*/**/*.yaml")}
    names = {EXPERIMENT if name.startswith(EXPERIMENT) else name for name in names}
    chosen = dict.fromkeys([*read_option("train").defaults, *read_option("eval").defaults])
    places = {name: place for place, name in enumerate(chosen)}
    return sorted(names, key=lambda name: (places.get(name.split("/")[0], len(places)), name))


@cache
def read_option(name: str, group: str = "") -> Option:
    """Read a file of conf/, and the files of the same group that it starts from."""
    text, package = (CONF / group / f"{name}.yaml").read_text(), group.replace("/", ".")
    lines = text.splitlines()
    inherited: dict[str, Setting] = {}
    settings: dict[str, Setting] = {}
    comments: dict[str, str] = {}
    defaults: dict[str, str | None] = {}
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    for path, key, value in _nodes(root, package):
        if _is_block(value):
            comments[path] = _beside(lines, key)
        else:
            settings[path] = Setting(text[value.start_mark.index : value.end_mark.index], _comment(lines, key, value))
    for default in yaml.safe_load(text).get("defaults", []):
        if isinstance(default, dict):
            defaults |= {chosen.split(" ")[-1]: option for chosen, option in default.items()}
        elif default != "_self_" and group:
            base = read_option(default, group)
            inherited |= base.settings
            comments = dict(base.comments) | comments
            defaults |= base.defaults
    return Option(_prose(_header(lines)), inherited | settings, comments, defaults)


def _header(lines: Sequence[str]) -> list[str]:
    end = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return [line.removeprefix("#").strip() for line in lines[:end] if not line.startswith("# @package")]


def _is_block(node: yaml.Node) -> bool:
    """Return whether a node is a mapping on several lines; one on a single line is a value."""
    return isinstance(node, yaml.MappingNode) and not node.flow_style


def _nodes(node: yaml.Node, path: str) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    """Yield the path, key and value of every setting, and of the mappings around them."""
    for key, value in node.value:
        if key.value in ("defaults", "hydra") and key.start_mark.column == 0:
            continue
        below = f"{path}.{key.value}" if path else key.value
        yield below, key, value
        if _is_block(value):
            yield from _nodes(value, below)


def _comment(lines: Sequence[str], key: yaml.Node, value: yaml.Node) -> str:
    """Return the comment lines above a key, the comment beside its value, and the lines that continue that one."""
    number, column = key.start_mark.line, key.start_mark.column
    above: list[str] = []
    while number > len(_header(lines)) and lines[number - 1].startswith(" " * column + "#"):
        number -= 1
        above.insert(0, lines[number])
    beside = [_beside(lines, value)]
    number = value.end_mark.line + 1
    while beside[0] and number < len(lines) and lines[number].startswith(" " * (column + 2)) and "#" in lines[number]:
        if lines[number].split("#")[0].strip():
            break
        beside.append(lines[number])
        number += 1
    return _prose(line.strip("# ") for line in [*above, *beside])


def _beside(lines: Sequence[str], node: yaml.Node) -> str:
    return lines[node.end_mark.line][node.end_mark.column :].partition("#")[2].strip()


def _prose(lines: Sequence[str] | Iterator[str]) -> str:
    return " ".join(line for line in lines if line)


# What signatures and schemas say


def _owner(option: Option, path: str) -> Any:
    """Return the class or function that a setting is an argument of; None for a setting of a schema."""
    target = option.settings.get(f"{path.rpartition('.')[0]}._target_")
    return locate(target.value) if target else None


def _annotation(target: Any, name: str) -> Any:
    if name == "enabled":  # of a callback; read by fcnlab, not by the callback
        return bool
    foreign = external_class(target)
    hints = get_type_hints(foreign.settings, include_extras=True) if foreign else {}
    parameter = inspect.signature(target).parameters.get(name)
    annotation = hints.get(name, parameter.annotation if parameter else None)
    return None if annotation is inspect.Parameter.empty or isinstance(annotation, str) else annotation


def _schema_annotation(path: str) -> Any:
    for root in ROOTS.values():
        kind: Any = root
        for name in path.split("."):
            kind = get_type_hints(kind, include_extras=True).get(name) if is_dataclass(kind) else None
        if kind is not None:
            return kind
    return None


def _allowed(annotation: Any) -> str:
    """Return the values of an annotation as Markdown; empty without an annotation."""
    if annotation is None:
        return ""
    if description := description_of(annotation):
        return _text(description)
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(map(_allowed, get_args(annotation)))
    words = describe_type(annotation)
    return f"`{words.removeprefix('of type ')}`" if words.startswith("of type ") else words


def _described_parameter(target: Any, name: str) -> str:
    """Return what a docstring says of a parameter; empty if it says nothing."""
    parameters = (inspect.getdoc(target) or "").partition("Parameters\n----------\n")[2].partition("\n\n")[0]
    match = re.search(rf"^{name}\n((?:    .*\n?)+)", parameters, re.MULTILINE)
    return _without_roles(_prose(line.strip() for line in match[1].splitlines())) if match else ""


def _first_sentence(target: Any) -> str:
    text = (inspect.getdoc(target) or "").split("\n\n")[0].replace("\n", " ")
    return _without_roles(re.split(r"(?<=\w\.) (?=[A-Z])", text)[0])


def _without_roles(text: str) -> str:
    return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")


def _components(option: Option) -> list[str]:
    return [path.removesuffix("._target_") for path in option.settings if path.endswith("._target_")]


def _arguments_not_in_file(option: Option, path: str) -> dict[str, Setting]:
    """Return the arguments of a component of fcnlab that its file leaves at their defaults, by path."""
    target = locate(option.settings[f"{path}._target_"].value)
    if not target.__module__.startswith("fcnlab."):
        return {}
    parameters = inspect.signature(target).parameters
    from_code = POSITIONAL_ARGUMENTS_FROM_CODE.get(path, ()) if f"{path}._partial_" in option.settings else ()
    taken = {*list(parameters)[: len(from_code)], *KEYWORD_ARGUMENTS_FROM_CODE.get(path, ())}
    taken |= {setting.removeprefix(f"{path}.").split(".")[0] for setting in option.settings}
    return {
        f"{path}.{name}": Setting(_as_yaml(parameter.default), in_file=False)
        for name, parameter in parameters.items()
        if name not in taken and parameter.default is not parameter.empty
    }


def _as_yaml(value: Any) -> str:
    value = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()


# Commands


def _commands() -> Iterator[str]:
    yield "(config-commands)=\n## Commands\n"
    for verb, sentence in VERBS.items():
        defaults = read_option(verb).defaults.items()
        chosen = [f"[`{group}={_null(name)}`](#{_anchor(group)})" for group, name in defaults if _is_group(group)]
        yield f":::{{confval}} fcnlab {verb}\n\n{_sentence(sentence)}\n"
        if chosen:
            yield f"Config groups and their defaults: {', '.join(chosen)}.\n"
        yield f"`fcnlab {verb} --help` has examples.\n:::\n"


def _command_settings() -> Iterator[str]:
    """Yield the settings that belong to no group: each once, with the commands that have it."""
    yield "(config-command-settings)=\n### Settings of the commands\n"
    yield "These settings belong to no config group. Each default is followed by the commands that have it.\n"
    merged: dict[str, dict[str, Setting]] = defaultdict(dict)
    for verb, root in ROOTS.items():
        file = read_option(verb).settings
        for path, in_schema in _schema_settings(root):
            setting = file.get(path, in_schema)
            comment = setting.comment or in_schema.comment or _line_of_help(verb, path)
            merged[path][verb] = replace(setting, comment=comment)
    for path, by_verb in merged.items():
        yield from _setting(path, by_verb, _allowed(_schema_annotation(path)), len(VERBS) + 1)


def _schema_settings(root: type, prefix: str = "") -> Iterator[tuple[str, Setting]]:
    """Yield the keys of a schema that are not config groups, with the comments in its source."""
    source, hints = inspect.getsource(root), get_type_hints(root, include_extras=True)
    for each in fields(root):
        if not prefix and _is_group(each.name):
            continue
        if is_dataclass(hints[each.name]):
            yield from _schema_settings(hints[each.name], f"{each.name}.")
            continue
        line = re.search(rf"((?:^    # .*\n)*)^    {each.name}: [^#\n]*(?:# (.*))?$", source, re.MULTILINE)
        assert line, f"{root.__name__}.{each.name}"
        comment = _prose([*(above.strip("# ") for above in line[1].splitlines()), line[2] or ""])
        default = each.default_factory() if each.default_factory is not NO_DEFAULT else each.default
        yield f"{prefix}{each.name}", Setting(_as_yaml(default), comment)


def _line_of_help(verb: str, path: str) -> str:
    """Return what the help of a command says of a setting that has a line of its own there."""
    match = re.search(rf"^ +{re.escape(path)}=\S+ +(\S.*)$", (CONF / f"{verb}.yaml").read_text(), re.MULTILINE)
    return match[1] if match else ""


def _is_group(name: str) -> bool:
    return (CONF / name).is_dir()


# Groups and their options


def _group(group: str) -> Iterator[str]:
    """Yield what a group is for, what its options build, its options, and their settings."""
    read = {path.stem: read_option(path.stem, group) for path in sorted((CONF / group).glob("*.yaml"))}
    yield f"({_anchor(group)})=\n## {group}\n"
    yield f"Choose an option by `{group}=NAME`. {_used_by(group)}\n"
    yield from _built(read)
    for name, option in read.items():
        yield f":::{{confval}} {group}={name}\n"
        yield from _described_option(option.header, f"{group}={name}")
        yield ":::\n"
    yield from _group_settings(read)


def _experiments() -> Iterator[str]:
    """Yield the experiments: the command, the paragraphs of the header, and the file itself."""
    yield f"({_anchor(EXPERIMENT)})=\n## {EXPERIMENT}\n"
    yield f"An experiment chooses options of other groups and sets values. {_used_by(EXPERIMENT)}\n"
    for path in sorted((CONF / EXPERIMENT).rglob("*.yaml")):
        name = path.relative_to(CONF / EXPERIMENT).with_suffix("")
        command, *header = _header(path.read_text().splitlines())
        paragraphs = re.sub(r" (?=(Cost|Expected|Source): )", "\n\n", _text(_prose(header)))
        yield f":::{{confval}} {EXPERIMENT}={name}\n\n```\n{command}\n```\n\n{paragraphs}\n"
        yield f"```yaml\n{_without_header(path)}\n```\n:::\n"


def _base() -> Iterator[str]:
    yield "(config-hydra)=\n## Settings of Hydra\n"
    yield "All commands change these settings of Hydra (`conf/base.yaml`):\n"
    yield f"```yaml\n{_without_header(CONF / 'base.yaml')}\n```"


def _without_header(path: Path) -> str:
    return re.sub(r"\A(#.*\n)+", "", path.read_text()).strip()


def _anchor(group: str) -> str:
    return f"config-{group.replace('/', '-')}"


def _null(name: str | None) -> str:
    return "null" if name is None else name


def _used_by(group: str) -> str:
    """Return the sentence that states the commands of a group and its default in each."""
    if group.startswith("hydra/"):
        return f"With `-m`, in {_codes(verb for verb, names in SWEEP_GROUPS.items() if group in names)}."
    parent, _, subgroup = group.partition("/")
    by_default: dict[str, list[str]] = defaultdict(list)
    for verb in VERBS:
        defaults = read_option(verb).defaults
        if parent in defaults:
            chosen = defaults[parent]
            if chosen and subgroup:
                chosen = read_option(chosen, parent).defaults[subgroup]
            by_default[_null(chosen)].append(verb)
    return f"Default: {'; '.join(f'`{name}` in {_codes(verbs)}' for name, verbs in by_default.items())}."


def _built(read: Mapping[str, Option]) -> Iterator[str]:
    """Yield what the options of a group build, with the first sentences of the docstrings."""
    built: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, option in read.items():
        for path in _components(option):
            built[path, option.settings[f"{path}._target_"].value].append(name)
    targets = Counter(path for path, _ in built)
    for (path, target), names in built.items():
        where = f" in {_codes(names)}" if targets[path] > 1 else ""
        comment = read[names[0]].comments.get(path, "")
        sentences = [_text(_sentence(each)) for each in (_first_sentence(locate(target)), comment) if each]
        yield f"- `{path}` builds {_link(target)}{where}{': ' * bool(sentences)}{' '.join(sentences)}"
    yield ""


def _link(name: str) -> str:
    """Return the name of a class or function, with a link to its documentation if it is fcnlab's."""
    if not name.startswith("fcnlab."):
        return f"`{name}`"
    target = locate(name)
    public = any(getattr(fcnlab, each) is target for each in fcnlab.__all__)
    return f"{{py:obj}}`{f'fcnlab.{target.__name__}' if public else dotted_name(target)}`"


def _described_option(header: str, override: str) -> Iterator[str]:
    """Yield what a header says of an option, after the other overrides that the option needs."""
    typed, _, prose = header.partition(": ")
    if not re.fullmatch(r"(fcnlab \w+ )?\S+=\S+( \S+=\S+)*", typed):
        prose = header
    elif not typed.endswith(override):
        yield f"`{typed}`\n"
    yield f"{_text(_sentence(prose))}"


def _group_settings(read: Mapping[str, Option]) -> Iterator[str]:
    """Yield each setting of a group once, with the options that have it."""
    merged: dict[str, dict[str, Setting]] = defaultdict(dict)
    allowed: dict[str, dict[str, None]] = defaultdict(dict)  # in order
    for name, option in read.items():
        settings = {path: each for path, each in option.settings.items() if path.rpartition(".")[2] not in DIRECTIVES}
        for path in _components(option):
            settings |= _arguments_not_in_file(option, path)
        for path, setting in settings.items():
            target, key = _owner(option, path), path.rpartition(".")[2]
            comment = setting.comment or _described_parameter(target, key)
            merged[path][name] = replace(setting, comment=comment)
            allowed[path][_allowed(_annotation(target, key) if target else _schema_annotation(path))] = None
    having_settings = sum(1 for option in read.values() if option.settings)
    for path, by_option in merged.items():
        yield from _setting(path, by_option, " or ".join(filter(None, allowed[path])), having_settings)


def _setting(path: str, by_option: Mapping[str, Setting], allowed: str, count: int) -> Iterator[str]:
    """Yield a setting: the values that are allowed, its defaults by option, and its comments.

    ``count`` is the number of options that could have it: if all have it alike, they are not listed.
    """
    yield f":::{{confval}} {path}"
    if allowed:
        yield f":type: {json.dumps(allowed, ensure_ascii=False)}"
    yield f":default: {json.dumps('; '.join(_defaults(by_option, count)), ensure_ascii=False)}\n"
    if missing := [name for name, setting in by_option.items() if not setting.in_file]:
        yield f"Type `+{path}=VALUE` with {_codes(missing)}, whose file does not contain it.\n"
    comments: dict[str, list[str]] = defaultdict(list)
    for name, setting in by_option.items():
        if setting.comment:
            comments[setting.comment].append(name)
    for comment, names in comments.items():
        yield f"{_text(_sentence(comment))}{f' ({_codes(names)})' if len(comments) > 1 else ''}\n"
    yield ":::\n"


def _defaults(by_option: Mapping[str, Setting], count: int) -> Iterator[str]:
    names: dict[str, list[str]] = defaultdict(list)
    for name, setting in by_option.items():
        names["required" if setting.value == "???" else f"`{setting.value}`"].append(name)
    alike = len(names) == 1 and len(by_option) == count
    for value, having in names.items():
        yield value if alike else f"{value} in {_codes(having)}"


# Comments as Markdown


def _codes(names: Sequence[str] | Iterator[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _sentence(comment: str) -> str:
    """Return a comment with a capital and a full stop; a value at its start, as in ``fixed: bilinear``, stays."""
    starts_with_value = re.match(r"\S+:|\S+ \||\S+=", comment)
    text = comment if starts_with_value else comment[0].upper() + comment[1:]
    return text if text.endswith(".") else f"{text}."


def _text(comment: str) -> str:
    """Return a comment as Markdown: overrides and names as code, links to pages, all else as it is written."""
    parts, end = [], 0
    for match in CODE.finditer(comment):
        parts.append(_escaped(comment[end : match.start()]))
        if match["document"]:
            parts.append(f"[{match['page'].split('/')[1].replace('-', ' ')}](../{match['page']}.md)")
        else:
            parts.append(match["quoted"] or f"`{match[0]}`")
        end = match.end()
    return "".join([*parts, _escaped(comment[end:])])


def _escaped(text: str) -> str:
    return re.sub(r"([\\*_\[\]<>`{}#$|])", r"\\\1", text)


if __name__ == "__main__":
    sys.exit(print(document()))
