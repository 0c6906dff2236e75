"""What a run reports: lines for people, records for programs, the result and the picture."""
