"""The configuration reference as Markdown, from the files of conf/, the schemas and the signatures of what they build.

python docs/scripts/config_reference.py        (make docs calls document)
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
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

import fcnlab
from fcnlab.cli import VERBS
from fcnlab.config import schemas
from fcnlab.config.components import DIRECTIVES, dotted_name, locate
from fcnlab.config.external_settings import external_class
from fcnlab.config.locations import CONF
from fcnlab.config.ranges import describe_type, description_of
from fcnlab.config.validation import KEYWORD_ARGUMENTS_FROM_CODE, POSITIONAL_ARGUMENTS_FROM_CODE

ROOTS = {verb: getattr(schemas, f"{verb.capitalize()}Config") for verb in VERBS}
COMPONENTS = (schemas.Component, schemas.Components)
LITERAL_GROUPS = ("experiment",)  # whose options set keys of other groups: the file itself is shown
OVERRIDE = re.compile(r"(?<![\w`/])[\w./]+=(?:\[[^\]]*\]|[^\s,;:()]*[\w\])])")
DOCUMENT_LINK = re.compile(r"docs/((\w+)/([\w-]+)\.md)")
CODE_WORD = re.compile(r"(?<![\w`/.*])(?:\w*_\w+|[A-Z]+/[\w/.]+)(?:\(\))?")


@dataclass(frozen=True)
class Setting:
    """A key of a file: its value as the file has it, and the comments beside and above it."""

    value: str
    comment: str = ""
    in_file: bool = True


@dataclass(frozen=True)
class Option:
    """A file of conf/: its header, its settings by path, and the options of its subgroups."""

    header: Sequence[str]
    settings: Mapping[str, Setting]
    comments: Mapping[str, str]  # of the mappings in it, by path
    defaults: Mapping[str, str | None]


def document() -> str:
    """Return the Markdown of all commands, groups, options and settings."""
    return "\n".join([*_commands(), *(line for group in groups() for line in _group(group)), *_base()])


# The files


def groups() -> list[str]:
    """Return the config groups, such as ``model/backbone``, in the order of train.yaml; others follow."""
    names = {str(path.parent.relative_to(CONF)) for path in CONF.rglob("*.yaml")} - {"."}
    names = {"experiment" if name.startswith("experiment/") else name for name in names}
    order = [name for verb in ("train", "eval") for name in read_option(verb).defaults]
    return sorted(names, key=lambda name: (order.index(name.split("/")[0]) if name.split("/")[0] in order else 99, name))


def options(group: str) -> list[str]:
    """Return the options of a group, as they are typed."""
    pattern = "**/*.yaml" if group in LITERAL_GROUPS else "*.yaml"
    return sorted(str(path.relative_to(CONF / group).with_suffix("")) for path in (CONF / group).glob(pattern))


def read_option(name: str, group: str = "") -> Option:
    """Read a file of conf/ and the files of the same group that it starts from."""
    text, package = (CONF / group / f"{name}.yaml").read_text(), group.replace("/", ".")
    lines = text.splitlines()
    header = [line for line in _leading(lines) if not line.startswith("# @package")]
    settings: dict[str, Setting] = {}
    comments: dict[str, str] = {}
    defaults: dict[str, str | None] = {}
    own: dict[str, Setting] = {}
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    for path, key, value in _leaves(root, package):
        own[path] = Setting(text[value.start_mark.index : value.end_mark.index].strip(), _comment(lines, key, value))
    for path, key in _mappings(root, package):
        comments[path] = _beside(lines[key.start_mark.line], key.end_mark.column)
    for default in yaml.safe_load(text).get("defaults", []):
        if isinstance(default, dict):
            defaults |= {group.split(" ")[-1]: chosen for group, chosen in default.items()}
        elif default != "_self_" and group:
            base = read_option(default, group)
            settings |= base.settings
            comments = dict(base.comments) | comments
            defaults |= base.defaults
    return Option([line.lstrip("# ") for line in header], settings | own, comments, defaults)


def _leading(lines: Sequence[str]) -> list[str]:
    count = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return list(lines[:count])


def _leaves(node: yaml.Node, path: str) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    """Yield the path, key and value of every setting; lists and mappings on one line are values."""
    for key, value in node.value:
        below = f"{path}.{key.value}" if path else key.value
        if key.value in ("defaults", "hydra") and not key.start_mark.column:  # a command's help is among the latter
            continue
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            yield from _leaves(value, below)
        else:
            yield below, key, value


def _mappings(node: yaml.Node, path: str) -> Iterator[tuple[str, yaml.Node]]:
    for key, value in node.value:
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            below = f"{path}.{key.value}" if path else key.value
            yield below, key
            yield from _mappings(value, below)


def _comment(lines: Sequence[str], key: yaml.Node, value: yaml.Node) -> str:
    """Return the comment lines above a key, the comment beside its value, and the lines that continue that one."""
    header = len(_leading(lines))
    first, last = key.start_mark.line, value.end_mark.line
    above: list[str] = []
    while first - 1 >= header and lines[first - 1].startswith(" " * key.start_mark.column + "#"):
        first -= 1
        above.insert(0, lines[first].strip("# "))
    beside = _beside(lines[last], value.end_mark.column)
    column = lines[last].rfind(f"# {beside}")
    while beside and last + 1 < len(lines) and lines[last + 1].startswith(" " * column + "#"):
        last += 1
        beside += f" {lines[last].strip('# ')}"
    return _prose([*above, beside])


def _beside(line: str, column: int) -> str:
    return line[column:].partition("#")[2].strip()


def _prose(lines: Sequence[str] | Iterator[str]) -> str:
    return " ".join(line for line in lines if line).strip()


# What is allowed


def allowed(option: Option, path: str) -> str:
    """Return the values of a setting as Markdown, from the signature of what it is an argument of, or from a schema."""
    target = _owner(option, path)
    return _words(_annotation(target, path.rpartition(".")[2]) if target else _schema_annotation(path))


def _owner(option: Option, path: str) -> Any:
    """Return the class or function that a setting is an argument of; None for a setting of a schema."""
    name = option.settings.get(f"{path.rpartition('.')[0]}._target_")
    return locate(name.value) if name else None


def _words(annotation: Any) -> str:
    """Return the values of an annotation as Markdown; empty without an annotation."""
    if annotation is None:
        return ""
    if description := description_of(annotation):
        return _text(description)
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(map(_words, get_args(annotation)))
    words = describe_type(annotation)
    return f"`{words.removeprefix('of type ')}`" if words.startswith("of type ") else words


def described(target: Any, name: str) -> str:
    """Return what a docstring says of a parameter; empty if it says nothing."""
    text = inspect.getdoc(target) or ""
    parameters = text.partition("Parameters\n----------\n")[2].partition("\n\n")[0]
    match = re.search(rf"^{name}\n((?:    .*\n?)+)", parameters, re.MULTILINE)
    return _without_roles(_prose(line.strip() for line in match[1].splitlines())) if match else ""


def _without_roles(text: str) -> str:
    return re.sub(r":\w+:`~?([^`]+)`", r"\1", text).replace("``", "`")


def _annotation(target: Any, name: str) -> Any:
    if name == "enabled":  # of a callback; read by fcnlab, not by the callback
        return bool
    if name in DIRECTIVES:
        return DIRECTIVES[name]
    foreign = external_class(target)
    hints = get_type_hints(foreign.settings, include_extras=True) if foreign else {}
    parameters = inspect.signature(target).parameters
    if name in hints or name not in parameters:
        return hints.get(name)
    annotation = parameters[name].annotation
    return None if annotation is inspect.Parameter.empty or isinstance(annotation, str) else annotation


def _schema_annotation(path: str) -> Any:
    for root in ROOTS.values():
        kind: Any = root
        for name in path.split("."):
            kind = get_type_hints(kind, include_extras=True).get(name) if is_dataclass(kind) else None
        if kind is not None:
            return kind
    return None


def arguments_not_in_file(option: Option, path: str) -> dict[str, Setting]:
    """Return the arguments of a component of fcnlab that its file leaves at their defaults, by path."""
    target = locate(option.settings[f"{path}._target_"].value)
    parameters = inspect.signature(target).parameters
    if not target.__module__.startswith("fcnlab."):
        return {}
    from_code = POSITIONAL_ARGUMENTS_FROM_CODE.get(path, ()) if f"{path}._partial_" in option.settings else ()
    taken = {*list(parameters)[: len(from_code)], *KEYWORD_ARGUMENTS_FROM_CODE.get(path, ())}
    given = {setting.removeprefix(f"{path}.").split(".")[0] for setting in option.settings}
    return {
        f"{path}.{name}": Setting(_as_yaml(parameter.default), in_file=False)
        for name, parameter in parameters.items()
        if name not in taken | given and parameter.default is not parameter.empty
    }


def _as_yaml(value: Any) -> str:
    value = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()


# The pages


def _commands() -> Iterator[str]:
    yield "(config-commands)=\n## Commands\n"
    for verb, sentence in VERBS.items():
        defaults = read_option(verb).defaults
        yield f":::{{confval}} fcnlab {verb}\n\n{sentence[0].upper()}{sentence[1:]}."
        chosen = [f"[`{group}={_null(name)}`](#{anchor(group)})" for group, name in defaults.items() if _is_group(group)]
        if chosen:
            yield f"\nConfig groups and their defaults: {', '.join(chosen)}."
        yield f"\n`fcnlab {verb} --help` has examples.\n:::\n"
    yield "(config-command-settings)=\n### Settings of the commands\n"
    yield "These keys belong to no config group. The commands that have a key stand after its default.\n"
    merged: dict[str, dict[str, Setting]] = defaultdict(dict)
    for verb, root in ROOTS.items():
        file = read_option(verb).settings
        for path, setting in _schema_settings(root):
            known = file.get(path, setting)
            comment = known.comment or setting.comment or _line_of_help(verb, path)
            merged[path][verb] = Setting(known.value, comment)
    for path, by_verb in merged.items():
        yield from _setting(path, by_verb, _words(_schema_annotation(path)), len(by_verb) + 1)


def _line_of_help(verb: str, path: str) -> str:
    """Return what the help of a command says of a setting that has a line of its own there."""
    text = yaml.safe_load((CONF / f"{verb}.yaml").read_text())["hydra"]["help"]["template"]
    match = re.search(rf"^ +{re.escape(path)}=\S+ +(\S.*)$", text, re.MULTILINE)
    return match[1] if match else ""


def _null(name: str | None) -> str:
    return "null" if name is None else name


def _is_group(name: str) -> bool:
    return (CONF / name).is_dir()


def _schema_settings(root: type, prefix: str = "") -> Iterator[tuple[str, Setting]]:
    """Yield the keys of a schema that are no config groups, with the comments in its source."""
    source, hints = inspect.getsource(root), get_type_hints(root, include_extras=True)
    for each in fields(root):
        kind = hints[each.name]
        if prefix == "" and _is_group(each.name):
            continue
        if is_dataclass(kind):
            yield from _schema_settings(kind, f"{each.name}.")
            continue
        comment = re.search(rf"((?:^    # .*\n)*)^    {each.name}: [^#\n]*(?:# (.*))?$", source, re.MULTILINE)
        assert comment, f"{root.__name__}.{each.name}"
        text = _prose([*(line.strip("# ") for line in comment[1].splitlines()), comment[2] or ""])
        default = each.default_factory() if each.default_factory is not NO_DEFAULT else each.default
        yield f"{prefix}{each.name}", Setting(_as_yaml(default), text)


def anchor(group: str) -> str:
    return "config-" + group.replace("/", "-")


def _group(group: str) -> Iterator[str]:
    read = {name: read_option(name, group) for name in options(group)}
    yield f"({anchor(group)})=\n## {group}\n"
    yield f"Choose an option by `{group}=NAME`. {_used_by(group)}\n"
    if group not in LITERAL_GROUPS:
        yield from _built(read)
    for name, option in read.items():
        yield f":::{{confval}} {group}={name}\n"
        if group in LITERAL_GROUPS:
            yield from _literal(option, (CONF / group / f"{name}.yaml").read_text())
        else:
            yield from _described(option, f"{group}={name}")
        yield ":::\n"
    if group not in LITERAL_GROUPS:
        yield from _settings(read)


def _used_by(group: str) -> str:
    """Return the sentence that states the commands of a group and its default in each."""
    if group.startswith("hydra/"):
        verbs = "`train`" if group.endswith("sweeper") else "`train` and `eval`"
        return f"It is for {verbs} with `-m`."
    parent = group.split("/")[0]
    by_default: dict[str, list[str]] = defaultdict(list)
    for verb in VERBS:
        defaults = read_option(verb).defaults
        if parent in defaults:
            chosen = defaults[parent]
            if group != parent:
                chosen = "tiny" if chosen else None
            by_default[_null(chosen)].append(f"`{verb}`")
    sentences = [f"`{name}` in {', '.join(verbs)}" for name, verbs in by_default.items()]
    return f"Default: {'; '.join(sentences)}." if sentences else ""


def _literal(option: Option, text: str) -> Iterator[str]:
    """Yield the command of an experiment, the paragraphs of its header, and its file."""
    command, *prose = option.header
    yield f"```\n{command}\n```\n"
    yield re.sub(r" (?=(Cost|Expected|Source): )", "\n\n", _text(_prose(prose)))
    yield f"\n```yaml\n{_without_header(text)}\n```"


def _described(option: Option, override: str) -> Iterator[str]:
    """Yield what the header says of an option, first the other overrides that it needs."""
    typed, prose = re.fullmatch(r"((?:fcnlab \w+ )?\S+=\S+(?: \S+=\S+)*): (.*)|(.*)", _prose(option.header)).group(1, 2)
    if typed and not typed.endswith(override):
        yield f"`{typed}`\n"
    yield f"{_text(_sentence(prose or _prose(option.header)))}\n"


def _without_header(text: str) -> str:
    lines = text.splitlines()
    return "\n".join(lines[len(_leading(lines)) :]).strip()


def _built(read: Mapping[str, Option]) -> Iterator[str]:
    """Yield what the options of a group build, with the first sentences of the docstrings."""
    built: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, option in read.items():
        for path in components(option):
            built[path, option.settings[f"{path}._target_"].value].append(name)
    paths = Counter(path for path, _ in built)
    for (path, target), names in built.items():
        sentence = _without_roles(_first_sentence(locate(target)))
        where = f" in {_codes(names)}" if paths[path] > 1 else ""
        comment = read[names[0]].comments.get(path, "")
        texts = [_text(each) for each in (sentence, comment and _sentence(comment)) if each]
        yield f"- `{path}` builds {_name(target)}{where}{': ' * bool(texts)}{' '.join(texts)}"
    yield ""


def _first_sentence(target: Any) -> str:
    text = (inspect.getdoc(target) or "").split("\n\n")[0].replace("\n", " ")
    return re.split(r"(?<=\w\.) (?=[A-Z])", text)[0]


def _codes(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def components(option: Option) -> list[str]:
    return [path.removesuffix("._target_") for path in option.settings if path.endswith("._target_")]


def _name(name: str) -> str:
    """Return the name of a class or function, with a link to its documentation."""
    if not name.startswith("fcnlab."):
        return f"`{name}`"
    target = locate(name)
    public = any(getattr(fcnlab, each) is target for each in fcnlab.__all__)
    return f"{{py:obj}}`fcnlab.{target.__name__}`" if public else f"{{py:obj}}`{dotted_name(target)}`"


def _settings(read: Mapping[str, Option]) -> Iterator[str]:
    """Yield each setting of a group once, with the options that have it."""
    merged: dict[str, dict[str, Setting]] = defaultdict(dict)
    words: dict[str, list[str]] = defaultdict(list)
    for name, option in read.items():
        own = {path: setting for path, setting in option.settings.items() if path.rpartition(".")[2] not in DIRECTIVES}
        for path in components(option):
            own |= arguments_not_in_file(option, path)
        for path, setting in own.items():
            merged[path][name] = setting
            text = allowed(option, path)
            words[path] += [text] * (text not in words[path])
            if not setting.comment and (target := _owner(option, path)):
                merged[path][name] = replace(setting, comment=described(target, path.rpartition(".")[2]))
    for path, by_option in merged.items():
        yield from _setting(path, by_option, " or ".join(filter(None, words[path])), sum(1 for option in read.values() if option.settings))


def _setting(path: str, by_option: Mapping[str, Setting], words: str, count: int) -> Iterator[str]:
    """Yield a setting: the values that are allowed, its default, and its comments."""
    yield f":::{{confval}} {path}"
    if words:
        yield f":type: {json.dumps(words, ensure_ascii=False)}"
    everywhere = len(by_option) == count and count > 1
    yield f":default: {json.dumps('; '.join(_values(by_option, everywhere)), ensure_ascii=False)}\n"
    comments: dict[str, list[str]] = defaultdict(list)
    for name, setting in by_option.items():
        if setting.comment:
            comments[setting.comment].append(name)
    if not any(setting.in_file for setting in by_option.values()):
        yield f"Set it by `+{path}=VALUE`: the file does not contain it.\n"
    for comment, names in comments.items():
        where = f" ({_codes(names)})" if len(comments) > 1 else ""
        yield f"{_text(_sentence(comment))}{where}\n"
    yield ":::\n"


def _sentence(comment: str) -> str:
    """Return a comment with a capital and a full stop, unless it starts with a value: ``fixed: bilinear``."""
    starts_with_value = re.match(r"\S+:|\S+ \||\S+=", comment)
    text = comment if starts_with_value else comment[0].upper() + comment[1:]
    return text if text.endswith((".", "...")) else f"{text}."


def _values(by_option: Mapping[str, Setting], everywhere: bool) -> Iterator[str]:
    names: dict[Setting, list[str]] = defaultdict(list)
    for name, setting in by_option.items():
        names[Setting(setting.value, in_file=setting.in_file)].append(name)
    for setting, having in names.items():
        value = "required" if setting.value == "???" else f"`{setting.value}`"
        where = "" if everywhere and len(names) == 1 else f" in {_codes(having)}"
        yield f"{value}{where}"


def _base() -> Iterator[str]:
    yield "(config-hydra)=\n## Settings of Hydra\n"
    yield "All commands change these settings of Hydra (`conf/base.yaml`):\n"
    yield f"```yaml\n{_without_header((CONF / 'base.yaml').read_text())}\n```"


def _text(comment: str) -> str:
    """Return a comment as Markdown: overrides and names as code, links to documents, all else as it is written."""
    pieces, end = [], 0
    pattern = re.compile(f"(?P<quoted>`[^`]+`)|(?P<link>{DOCUMENT_LINK.pattern})|(?P<code>{OVERRIDE.pattern}|{CODE_WORD.pattern})")
    for match in pattern.finditer(comment):
        pieces.append(_escaped(comment[end : match.start()]))
        if match["quoted"]:
            pieces.append(match[0])
        elif match["link"]:
            folder, file = Path(match[0]).parts[-2:]
            pieces.append(f"[{Path(file).stem}](../{folder}/{file})")
        else:
            pieces.append(f"`{match[0]}`")
        end = match.end()
    return "".join([*pieces, _escaped(comment[end:])])


def _escaped(text: str) -> str:
    return re.sub(r"([\\*_\[\]<>`{}#$|])", r"\\\1", text)


if __name__ == "__main__":
    sys.exit(print(document()))
