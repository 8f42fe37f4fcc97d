"""The argument parser, which answers a mistake in the arguments with one line in a user's words."""

import re
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from types import MappingProxyType
from typing import NoReturn

from jsonargparse import ArgumentParser

from modalloy.workflow.mistakes import did_you_mean, words_for

USER_MISTAKE = 2


class Parser(ArgumentParser):
    """A parser of one verb, or of the program, whose verbs' parsers are in `verbs`."""

    verbs: "Mapping[str, Parser]" = MappingProxyType({})

    def spell_with_dashes(self) -> None:
        """Shows "-" between the words of an option; each may be "_", as in a configuration's keys, as well."""
        actions = self._option_string_actions
        for option, action in list(actions.items()):
            # One with a "." is a key of a configuration.
            if option.startswith("--") and "." not in option:
                shown = f"--{option[2:].replace('_', '-')}"
                action.option_strings = [shown if each == option else each for each in action.option_strings]
                spellings = product(*("-_" if sign == "-" else sign for sign in shown[2:]))
                actions |= {f"--{''.join(spelling)}": action for spelling in spellings}

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints the mistake and exits with 2."""
        reason, parser = " ".join(str(message).split()), self
        if found := re.search(r"arguments are required: (.+)", reason):
            parser, reason = self._missing(found[1].split(", "))
        elif found := re.search(r'expected "(?:(\w+)\.)?verb"', reason):
            parser = self.verbs[found[1]] if found[1] else self
            reason = f"name a verb: {', '.join(parser.verbs)}"
        elif found := re.match(r"argument (\S+): invalid choice: (.*) \(choose from (.*)\)$", reason):
            reason = self._no_choice(*found.groups())
        elif found := re.match(r"unrecognized arguments:.*? (--[^\s=]+)", reason):
            reason = f"there is no option {found[1]}{self._instead_of(found[1])}"
        elif found := re.match(r'Parser key "([^"]+)": .*?(?:(?:Given|Got) value: (.*)|Unable to load config)', reason):
            reason = self._misfit(found[1], found[2]) or reason
        print(f"{parser.prog}: {reason} (see {parser.prog} --help)", file=sys.stderr)
        sys.exit(USER_MISTAKE)

    def _instead_of(self, option: str) -> str:
        shown = [each for action in self._actions for each in action.option_strings]
        hint = did_you_mean(option, shown)
        if not hint and "--set" in shown:
            return f"; a key of the configuration is set with --set {option[2:].replace('-', '_')}=VALUE"
        return hint

    def _no_choice(self, key: str, quoted: str, choices: str) -> str:
        known = list(self.verbs) if key == "verb" else choices.replace("'", "").split(", ")
        return f"there is no {key} {quoted}{did_you_mean(quoted[1:-1], known)} (there are {', '.join(known)})"

    def _missing(self, keys: Sequence[str]) -> "tuple[Parser, str]":
        verb, _, rest = keys[0].partition(".")
        parser = self.verbs[verb]
        names = [key.removeprefix(f"{verb}.") for key in keys]
        if rest.partition(".")[0] in parser.verbs:
            return parser._missing(names)
        actions = parser._option_string_actions
        shown = [actions[f"--{name}"].option_strings[0] if f"--{name}" in actions else name.upper() for name in names]
        return parser, f"missing {', '.join(shown)}"

    def _misfit(self, key: str, value: str | None) -> str | None:
        parts = [option for option in self._option_string_actions if option.startswith(f"--{key}.")]
        if parts:
            return f"--{key} takes no value itself, but has options: {', '.join(parts)}"
        action = next((each for each in self._actions if each.dest == key), None)
        kind = getattr(action, "_typehint", None) or getattr(action, "type", None)
        if action is None or kind is None or value is None:
            return None
        name = action.option_strings[0] if action.option_strings else key.upper()
        return f"{name} must be {words_for(kind).removesuffix(' or null')}, got {value!r}"
