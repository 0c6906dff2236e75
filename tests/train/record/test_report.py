"""Lines at a steady pace, and a bar on a terminal."""

import io


def test_progress_is_printed_every_ten_seconds_and_when_due(monkeypatch):
    from apr.train.record import report

    now, out = [100.0], io.StringIO()
    monkeypatch.setattr(report.time, "monotonic", lambda: now[0])
    lines = report.Report(out)
    for step in range(1, 41):
        now[0] += 3
        lines.progress(f"step {step}", step, 40, due=step % 25 == 0)
    lines = [int(line.removeprefix("step ")) for line in out.getvalue().splitlines()]
    assert lines == [1, 5, 9, 13, 17, 21, 25, 29, 33, 37]


def test_a_terminal_gets_the_lines_and_a_bar(tmp_path):
    from apr.train.record.report import Report

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = Terminal()
    with Report(out) as report:
        report.open_log(tmp_path / "run.log")
        report.progress("step 1/2", 1, 2, due=True)
        report.progress("step 2/2", 2, 2)
        report.line("done")
    assert "\x1b[" in out.getvalue()
    assert "step 2/2" in out.getvalue()
    assert (tmp_path / "run.log").read_text() == "step 1/2\ndone\n"
