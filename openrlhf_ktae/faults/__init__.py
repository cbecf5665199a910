"""What a run does when something goes wrong: numbers, rollouts, processes, time, and the order to end.

Each module is one fault; `guarded_trainer` is what the trainers inherit. docs/reliability.md tells the whole.
"""
