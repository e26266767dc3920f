"""SHOW: what people see. Only this room knows Rich (consoles) and Jinja2 (pages).

Reading order: `numbers`, `console` (the two streams, messages and errors), `tables`, `progress`;
then a file for each thing that is shown: `pruned`, `shrunk`, `tree`, `comparison`, `verification`;
and `page`, the reports as a page of HTML.
"""
