"""The prompt of a course that is left running."""

import cmd
import shlex
import subprocess
from typing import Final

import click

from loadtest.crash_course import topology
from loadtest.crash_course.api import ApiFailed
from loadtest.crash_course.cluster import ALL_SESSIONS, Cluster, CniFailed, Pod
from loadtest.crash_course.namespaces import CommandFailed
from loadtest.crash_course.topology import Node

FAULTS: Final = ("peer", "agent")


def run(cluster: Cluster) -> None:
    """Read commands until `exit`, the end of the input or Ctrl-C."""
    try:
        Shell(cluster).cmdloop()
    except KeyboardInterrupt:
        click.echo()


class NotPossible(Exception):
    """What was asked for cannot be done; the text says why."""


class Shell(cmd.Cmd):
    """The commands; `help COMMAND` shows the text below each."""

    intro = "Type help, or exit. Pods and nodes are named by `pods` and `nodes`."
    prompt = "crash-course> "

    def __init__(self, cluster: Cluster) -> None:
        super().__init__()
        self._cluster = cluster

    def onecmd(self, line: str) -> bool:
        """Run a command. A wrong or failed one ends nothing, nor does Ctrl-C meanwhile; the end of the input does."""
        if line == "EOF":
            return True
        try:
            return bool(super().onecmd(line))
        except KeyboardInterrupt:
            click.echo()
        except ValueError:  # too many or too few words, or no number
            click.echo(getattr(self, f"do_{self.parseline(line)[0]}").__doc__)
        except (NotPossible, CommandFailed, CniFailed, ApiFailed, OSError) as error:
            click.echo(str(error))
        return False

    def do_pods(self, _: str) -> None:
        """pods: the pods with their node and address."""
        for pod in self._cluster.pods.values():
            click.echo(f"{pod.name:<20} {pod.node.name:<10} {pod.address}")

    def do_nodes(self, _: str) -> None:
        """nodes: the nodes with their address."""
        for node in self._cluster.nodes:
            click.echo(f"{node.name:<20} {node.address}")

    def do_get(self, line: str) -> None:
        """get KIND [NAME] [-o yaml]: what the service holds, such as `get pods`."""
        self._show(topology.ROUTER, self._cluster.typha(f"get {line}"))

    def do_ping(self, line: str) -> None:
        """ping POD POD: three echo requests."""
        source, target = map(self._pod, shlex.split(line))
        self._show(source.sandbox, f"ping -c 3 -i 0.2 -W 1 {target.address}")

    def do_curl(self, line: str) -> None:
        """curl POD POD PORT: a connection by TCP."""
        source, target, port = shlex.split(line)
        url = f"http://{self._pod(target).address}:{int(port)}"
        self._show(self._pod(source).sandbox, f"curl -sS --connect-timeout 2 {url}")

    def do_explain(self, line: str) -> None:
        """explain POD POD PORT: which policy decides."""
        source, target, port = shlex.split(line)
        self._show(topology.ROUTER, self._cluster.explain_command(source, target, int(port)))

    def do_run(self, line: str) -> None:
        """run POD NODE [LABEL=VALUE ...]: a new pod with servers on 443 and 8080."""
        name, node, *labels = shlex.split(line)
        pod = self._cluster.run_pod(name, self._node(node), labels=dict(label.split("=", 1) for label in labels))
        self._cluster.start_web(pod, 443, 8080)
        click.echo(pod.address)

    def do_delete(self, line: str) -> None:
        """delete POD: ends a pod."""
        self._cluster.delete_pod(self._pod(line.strip()))

    def do_exec(self, line: str) -> None:
        """exec POD|NODE|router COMMAND: any command there, such as `exec node-1 nft list ruleset`."""
        where, _, command = line.partition(" ")
        if where in self._cluster.pods:
            where = self._pod(where).sandbox
        elif where != topology.ROUTER:
            self._node(where)
        self._show(where, command)

    def do_birdc(self, line: str) -> None:
        """birdc NODE COMMAND: such as `birdc node-1 show route`."""
        node, _, command = line.partition(" ")
        self._node(node)
        self._show(node, self._cluster.birdc_command(node, command))

    def do_break(self, line: str) -> None:
        """break peer|agent NODE: turn all BGP sessions of a node off, or kill its node agent."""
        fault, name = shlex.split(line)
        node = self._node(name).name
        if fault == "peer":
            click.echo(self._cluster.birdc(node, "disable", ALL_SESSIONS))
        elif fault == "agent":
            if f"node-agent-{node}" not in self._cluster.processes:
                raise NotPossible(f"the node agent of {node} is dead already")
            self._cluster.kill_process(f"node-agent-{node}")
        else:
            click.echo(f"one of {', '.join(FAULTS)}")

    def do_heal(self, line: str) -> None:
        """heal peer|agent NODE: undo what break did."""
        fault, name = shlex.split(line)
        node = self._node(name)
        if fault == "peer":
            click.echo(self._cluster.birdc(name, "enable", ALL_SESSIONS))
        elif fault == "agent":
            if f"node-agent-{name}" in self._cluster.processes:
                raise NotPossible(f"the node agent of {name} runs")
            self._cluster.start_node_agent(node)
        else:
            click.echo(f"one of {', '.join(FAULTS)}")

    def do_exit(self, _: str) -> bool:
        """exit: removes everything."""
        return True

    def emptyline(self) -> bool:
        """An empty line does nothing."""
        return False

    def _pod(self, name: str) -> Pod:
        if name not in self._cluster.pods:
            raise NotPossible(f"there is no pod {name!r}: `pods` lists them")
        return self._cluster.pods[name]

    def _node(self, name: str) -> Node:
        found = next((node for node in self._cluster.nodes if node.name == name), None)
        if found is None:
            raise NotPossible(f"there is no node {name!r}: `nodes` lists them")
        return found

    def _show(self, where: str, command: str) -> None:
        """Run a command whose output goes to the terminal; a failed one is no reason to end."""
        subprocess.run(self._cluster.spaces.command(where, ["sh", "-c", command]), check=False)
