"""The documentation of tests in other projects that may fail."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.foreign.run import begins_row, heading_of, known, rows_missing


class KnownTests(SynchronousTestCase):
    """The list of tests in other projects that may fail."""

    def test_rows(self) -> None:
        """Each heading is a row in a table of the page that it refers to."""
        self.assertEqual(rows_missing(), [])

    def test_rowsAreWhole(self) -> None:
        """A heading is the whole first cell of a row."""
        self.assertTrue(begins_row("   * - Texts of replies", "Texts of replies"))
        self.assertTrue(begins_row("``smtp_state``       any value", "``smtp_state``"))
        for line in ("   * - Texts of replies differ", "     - Texts of replies", "``smtp_states``      any value"):
            self.assertFalse(begins_row(line, "Texts of replies" if "Texts" in line else "``smtp_state``"))

    def test_patterns(self) -> None:
        """Patterns match names of tests. Brackets are literal."""
        headings = {"test_a::*[1]": "one", "test_b": "two"}
        self.assertEqual(heading_of("test_a::C::test[1]", headings), "one")
        self.assertIsNone(heading_of("test_a::C::test1", headings))
        self.assertTrue(known())
