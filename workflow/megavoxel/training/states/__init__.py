"""States of a run: who may write them, when they are written, and how a run goes on from one."""
