import pytest

from apr.duration import format_duration


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (62, "1:02"), (3599.6, "1:00:00"), (3723, "1:02:03")]
)
def test_hours_appear_only_where_there_are_any(seconds, text):
    assert format_duration(seconds) == text
