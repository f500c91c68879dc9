"""Compound statements: if and match are decided where facts decide them, loops and the like are walked."""

from __future__ import annotations

import ast
from typing import Any

from . import edits
from .evaluate import OBJECT
from .scopes import is_plain
from .statements import Statements
from .walk import Unknown

_Arm = tuple[ast.expr, list[ast.stmt], ast.If]


class Branches(Statements):
    """The walk over statements that hold blocks."""

    def inner(self, body: list[ast.stmt]) -> tuple[bool, bool]:
        """Walk a block that may not run, or may run often."""
        self.depth += 1
        found = self.block(body)
        self.depth -= 1
        return found

    def _statement_if(self, node: ast.If) -> tuple[bool, bool]:
        if not node.orelse and _raises(node.body) and self._check(node):
            return True, False
        arms, rest = self._chain(node)
        kept: list[_Arm] = []
        final: list[ast.stmt] | None = None
        for arm in arms:
            found = self.decide(arm[0])
            if found is None:
                kept.append(arm)
                continue
            self.decided(arm[0], str(found[0]), found[1])
            if found[0]:
                final = arm[1]
                break
        else:
            final = rest
        if len(kept) == len(arms):
            return self._walked(node, arms, rest)
        if kept:
            return self._rebuilt(node, kept, final)
        return self._taken(node, final) if final else (True, False)

    def _check(self, node: ast.If) -> bool:
        """A check that raises and was passed."""
        if not self._passed(node.test):
            return False
        self.log.checks.add((self.module.name, node.lineno))
        return True

    def _chain(self, node: ast.If) -> tuple[list[_Arm], list[ast.stmt]]:
        """The arms of an if with its elifs, and the block of its else."""
        arms: list[_Arm] = [(node.test, node.body, node)]
        while len(arms[-1][2].orelse) == 1 and self._is_elif(arms[-1][2].orelse[0]):
            following = arms[-1][2].orelse[0]
            assert isinstance(following, ast.If)
            arms.append((following.test, following.body, following))
        return arms, arms[-1][2].orelse

    def _is_elif(self, node: ast.stmt) -> bool:
        at = self.text.start(node)
        return isinstance(node, ast.If) and self.text.data[at : at + 4] == b"elif"

    def _walked(self, node: ast.If, arms: list[_Arm], rest: list[ast.stmt]) -> tuple[bool, bool]:
        """An if of which nothing is decided."""
        stops, empty = [], []
        blocks = [arm[1] for arm in arms] + ([rest] if rest else [])
        for test, body, _ in arms:
            self.test(test)
            gone, stop = self.inner(body)
            stops.append(stop)
            empty.append(gone)
        if rest:
            gone, stop = self.inner(rest)
            stops.append(stop)
            empty.append(gone)
        if all(empty) and all(is_plain(arm[0]) for arm in arms):
            return True, False
        for body, gone in zip(blocks, empty):
            self.filled(body, gone)
        return False, bool(rest) and all(stops)

    def _lines(self, node: ast.stmt) -> tuple[int, int]:
        return self.text.starts[node.lineno - 1], self.text.starts[node.end_lineno or 0]

    def arm_text(self, body: list[ast.stmt], indent: str) -> tuple[str, bool, bool]:
        """(lines of a block at an indentation, all gone, control never passes it)."""
        found = [False, False]

        def walk() -> None:
            found[:] = self.inner(body)

        if self.inline(body[0]):
            text = self.captured(self.text.start(body[0]), self.text.end(body[-1]), walk)
            return (f"{indent}{text}\n" if not found[0] else ""), found[0], found[1]
        start = self.text.starts[self._block_start(body) - 1]
        end = self.text.starts[body[-1].end_lineno or 0]
        text = self.captured(start, end, walk)
        own = edits.indentation(self.text.line(self.text.first_line(body[0])))
        return edits.reindented(text, own, indent), found[0], found[1]

    def _block_start(self, body: list[ast.stmt]) -> int:
        return self.lead(body[0])

    def _taken(self, node: ast.stmt, body: list[ast.stmt]) -> tuple[bool, bool]:
        """Put a block in the place of the statement that chose it."""
        start, end = self._lines(node)
        depth = self.depth
        self.depth -= 1  # it runs whenever the statement does
        text, gone, stops = self.arm_text(body, edits.indentation(self.text.line(node.lineno)))
        self.depth = depth
        if not gone:
            self.edits.append((start, end, text))
        return gone, stops

    def _rebuilt(self, node: ast.If, kept: list[_Arm], final: list[ast.stmt] | None) -> tuple[bool, bool]:
        """An if of which some arms are gone."""
        start, end = self._lines(node)
        indent = edits.indentation(self.text.line(node.lineno))
        parts: list[str] = []
        stops: list[bool] = []
        for i, (test, body, arm) in enumerate(kept):
            first = self.text.start(test)
            head = self.captured(first, self.text.end(test), lambda t=test: self.test(t))
            colon = self.text.slice(self.text.end(test), self._header_end(test, body))
            word = "if " if i == 0 else "elif "
            opening = self.text.slice(self.text.start(arm), first).removeprefix("elif").removeprefix("if").strip()
            inner = f"{indent}    " if self.inline(body[0]) else self._indent_of(body)
            text, gone, stop = self.arm_text(body, inner)
            parts.append(
                f"{indent}{word}{opening}{head}{colon.rstrip()}\n{text if not gone else f'{inner}pass{chr(10)}'}"
            )
            stops.append(stop)
        if final:
            inner = self._indent_of(final) if not self.inline(final[0]) else f"{indent}    "
            text, gone, stop = self.arm_text(final, inner)
            if not gone:
                parts.append(f"{indent}else:\n{text}")
            stops.append(stop and not gone)
        self.edits.append((start, end, "".join(parts)))
        return False, bool(final) and all(stops)

    def _header_end(self, test: ast.expr, body: list[ast.stmt]) -> int:
        """The offset behind the colon (and its comment) of an if."""
        if self.inline(body[0]):
            return self.text.start(body[0])
        return self.text.starts[self.lead(body[0]) - 1]

    def _indent_of(self, body: list[ast.stmt]) -> str:
        return edits.indentation(self.text.line(self.text.first_line(body[0])))

    def _statement_match(self, node: ast.Match) -> tuple[bool, bool]:
        chosen = None if self.opaque else self._case(node)
        if chosen is not None:
            case, used = chosen
            self.decided(node.subject, ast.unparse(case.pattern), used)
            return self._taken(node, case.body)
        self.expr(node.subject)
        for case in node.cases:
            self._pattern(case.pattern)
            if case.guard:
                self.test(case.guard)
            self.filled(case.body, self.inner(case.body)[0])
        return False, False

    def _case(self, node: ast.Match) -> tuple[ast.match_case, list[Any]] | None:
        """The case that a known subject takes, if only literals decide."""
        if self.decide(node.subject) is None:
            return None
        try:
            subject, used = self.known(node.subject)
            for case in node.cases:
                if case.guard is not None:
                    return None
                holds = self._matches(case.pattern, subject)
                if holds:
                    return case, used
        except (Unknown, TypeError):
            return None
        return None

    def _matches(self, pattern: ast.pattern, subject: Any) -> bool:
        if subject is OBJECT:
            raise Unknown
        if isinstance(pattern, ast.MatchValue):
            return bool(self.known(pattern.value)[0] == subject)
        if isinstance(pattern, ast.MatchSingleton):
            return pattern.value is subject
        if isinstance(pattern, ast.MatchOr):
            return any(self._matches(p, subject) for p in pattern.patterns)
        if isinstance(pattern, ast.MatchAs) and pattern.pattern is None and pattern.name is None:
            return True
        raise Unknown

    def _pattern(self, pattern: ast.pattern) -> None:
        for part in ast.iter_child_nodes(pattern):
            if isinstance(part, ast.pattern):
                self._pattern(part)
            elif isinstance(part, ast.expr):
                self.in_role("type", part) if isinstance(pattern, ast.MatchClass) else self.expr(part)

    def _statement_for(self, node: ast.For) -> tuple[bool, bool]:
        self.expr(node.iter)
        changes = len(self.edits)
        self.expr(node.target)
        gone, _ = self.inner(node.body)
        if node.orelse:
            self.filled(node.orelse, self.inner(node.orelse)[0])
        elif gone and is_plain(node.iter):
            return True, False
        self.filled(node.body, gone)
        scope = self.scope_of(node.target.id) if isinstance(node.target, ast.Name) else None
        if scope is not None and isinstance(node.target, ast.Name) and not self.opaque:
            name = node.target.id
            used = any(isinstance(n, ast.Name) and n.id == name and isinstance(n.ctx, ast.Load) for n in ast.walk(node))
            if used and name not in scope.loads and len(self.edits) > changes:
                self.edits.append((self.text.start(node.target), self.text.end(node.target), "_"))
        return False, False

    def _statement_while(self, node: ast.While) -> tuple[bool, bool]:
        self.test(node.test)
        self.filled(node.body, self.inner(node.body)[0])
        if node.orelse:
            self.filled(node.orelse, self.inner(node.orelse)[0])
        return False, False

    def _statement_with(self, node: ast.With | ast.AsyncWith) -> tuple[bool, bool]:
        for item in node.items:
            self.expr(item.context_expr)
            self.expr(item.optional_vars)
        self.filled(node.body, self.block(node.body)[0])
        return False, False  # what it enters may swallow an exception

    def _statement_try(self, node: ast.Try) -> tuple[bool, bool]:
        self.trying += 1
        self.filled(node.body, self.inner(node.body)[0])
        self.trying -= 1
        for handler in node.handlers:
            self.in_role("type", handler.type)
            self.filled(handler.body, self.inner(handler.body)[0])
        for body in (node.orelse, node.finalbody):
            if body:
                self.filled(body, self.inner(body)[0])
        return False, False


def _raises(body: list[ast.stmt]) -> bool:
    """A block that only raises, after plain preparations of its message."""
    *before, last = body
    return isinstance(last, ast.Raise) and all(isinstance(s, ast.Assign) and is_plain(s.value) for s in before)
