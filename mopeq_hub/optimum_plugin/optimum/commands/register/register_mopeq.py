"""`optimum-cli mopeq ...`: the same commands as `mopeq-hub`, found by optimum through its namespace of registered
commands."""

from argparse import REMAINDER, ArgumentParser

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo


class MopeqCommand(BaseOptimumCLICommand):
    """Hands everything after `mopeq` to the command line of mopeq-hub."""

    COMMAND = CommandInfo(
        name="mopeq", help="Publish mixture-of-experts models with a bit width of its own for every expert (mopeq-hub)."
    )

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        parser.add_argument("arguments", nargs=REMAINDER, help="A command of mopeq-hub and its options.")

    def run(self) -> None:
        from mopeq_hub.cli import main

        main(self.args.arguments)


REGISTER_COMMANDS = [MopeqCommand]
