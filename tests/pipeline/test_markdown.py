from __future__ import annotations

from pipeline.markdown import markdown_table


def test_the_first_column_is_text_and_bars_stay_out_of_the_columns() -> None:
    assert markdown_table(("a", "b"), [("x|y", "1")]) == "| a | b |\n| --- | ---: |\n| x\\|y | 1 |"


def test_other_columns_can_be_text_counted_from_either_end() -> None:
    assert markdown_table(("a", "b", "c"), [], (0, -1)).splitlines()[1] == "| --- | ---: | --- |"
