"""The one lifecycle base of every node: parameters, entities, diagnostics, and how a process starts and ends.

A subclass names its configuration dataclass and fills hooks; it never touches the state machine:

    class CameraNode(BaseNode[CameraConfig]):
        def build(self, config): ...     # configure: make publishers, subscriptions, timers; raise ConfigError if wrong
        def start(self): ...             # activate
        def stop(self): ...              # deactivate: publishers are silent from here on, timers rest
        def teardown(self): ...          # cleanup, shutdown: release devices and threads
        def report(self): ...            # entries of /diagnostics, once a second

Everything made with `publisher`, `subscribe`, `service` and `every` goes away with cleanup by itself. Staleness is
judged by a monotonic clock (`monotonic_ns`), samples are aligned by header stamps (`now_ns` is the ROS clock).
"""

import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.context import Context
from rclpy.executors import Executor, ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecyclePublisher, LifecycleState, TransitionCallbackReturn
from rclpy.signals import SignalHandlerOptions

from pi05_ros import topics
from pi05_ros.config import ConfigError
from pi05_ros.contract import Contract, ContractError, load_contract
from pi05_ros.health import Health, Level, Status
from pi05_ros.nodes.parameters import Parameters
from pi05_ros.nodes.qos import profile
from pi05_ros.qos import Qos, offered, requested

ConfigT = TypeVar("ConfigT")


class BaseNode(LifecycleNode, Generic[ConfigT]):
    """A lifecycle node with typed parameters.

    Args:
        name: node name, unless remapped (`__node`).
        config_type: frozen dataclass of its parameters (see `pi05_ros.config`).
        contract: the robot; None reads the installed contract.
        arguments: passed to rclpy's node (context, namespace, parameter_overrides, cli_args, …).

    Attributes:
        contract: the robot.
        health: counters and troubles, told in /diagnostics by itself.
        failure: why the last configure failed, or "".
    """

    diagnostics_period_s: ClassVar[float] = 1.0

    def __init__(
        self, name: str, config_type: type[ConfigT], *, contract: Contract | None = None, **arguments: Any
    ) -> None:
        super().__init__(name, automatically_declare_parameters_from_overrides=True, **arguments)
        self.contract = contract or load_contract()
        self.failure = ""
        self.health = Health(self.get_logger().warning, self.get_logger().info)
        self._active = False
        self._configured = False
        self._built: list[tuple[Callable[[Any], Any], Any]] = []
        self._timers_at_rest: list[Any] = []
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._parameters_bound = Parameters(self, config_type)
        self._diagnostics = self.create_publisher(
            DiagnosticArray, topics.DIAGNOSTICS, profile(offered(topics.DIAGNOSTICS))
        )
        self.create_timer(self.diagnostics_period_s, self._publish_diagnostics, clock=self._steady)

    # -- hooks ------------------------------------------------------------------------------------------------------

    def build(self, config: ConfigT) -> None:
        """Make everything the node needs; raise ConfigError (or ValueError, OSError) with a clear line if it cannot."""

    def start(self) -> None:
        """Begin to act; publishers are open."""

    def stop(self) -> None:
        """Cease to act; called before publishers close, so that a last command can still leave."""

    def teardown(self) -> None:
        """Release what `build` took; called once for every build, also for one that failed half-way."""

    def report(self) -> Iterable[Status]:
        """Return the node's own entries of /diagnostics."""
        return ()

    # -- for subclasses ---------------------------------------------------------------------------------------------

    @property
    def active(self) -> bool:
        """Whether the node is in the lifecycle's active state."""
        return self._active

    def now_ns(self) -> int:
        """Return the ROS time [ns] (simulated under use_sim_time)."""
        return int(self.get_clock().now().nanoseconds)

    def publisher(self, message_type: Any, topic: str, qos: Qos | None = None) -> LifecyclePublisher[Any]:
        """Make a publisher that speaks only while the node is active; QoS from the table unless given."""
        made = self.create_lifecycle_publisher(message_type, topic, profile(qos or offered(topic)))
        self._built.append((self.destroy_lifecycle_publisher, made))
        return made

    def subscribe(
        self, message_type: Any, topic: str, callback: Callable[[Any], None], qos: Qos | None = None, raw: bool = False
    ) -> Any:
        """Make a subscription; the callback should only copy into a slot. QoS from the table unless given."""
        made = self.create_subscription(message_type, topic, callback, profile(qos or requested(topic)), raw=raw)
        self._built.append((self.destroy_subscription, made))
        return made

    def service(self, service_type: Any, name: str, callback: Callable[[Any, Any], Any]) -> Any:
        """Make a service that exists while the node is configured."""
        made = self.create_service(service_type, name, callback)
        self._built.append((self.destroy_service, made))
        return made

    def every(self, period_s: float, callback: Callable[[], None]) -> Any:
        """Call back periodically on the steady clock while the node is active."""
        made = self.create_timer(period_s, callback, clock=self._steady, autostart=False)
        self._built.append((self.destroy_timer, made))
        self._timers_at_rest.append(made)
        return made

    def discard(self, entity: Any) -> None:
        """Destroy something made with `publisher`, `subscribe`, `service` or `every` before cleanup does."""
        destroy = next(destroy for destroy, made in self._built if made is entity)
        self._built.remove((destroy, entity))
        destroy(entity)

    # -- lifecycle --------------------------------------------------------------------------------------------------

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Read the parameters and build; a failure is one error message and leaves the node unconfigured."""
        self.failure = ""
        try:
            config = self._parameters_bound.read()
            self._configured = True
            self.build(config)
        except (ConfigError, ValueError, OSError, ImportError, KeyError) as error:
            self.failure = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        except Exception:
            self.failure = traceback.format_exc()
        if self.failure:
            self.get_logger().error(f"cannot be configured: {self.failure}")
            self._forget()
            return TransitionCallbackReturn.FAILURE
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Open the publishers, start, and let the timers run."""
        super().on_activate(state)
        if not self._guarded(self.start):
            super().on_deactivate(state)
            return TransitionCallbackReturn.FAILURE
        self._active = True
        for timer in self._timers_at_rest:
            timer.reset()
        return TransitionCallbackReturn.SUCCESS

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Rest the timers, stop, and close the publishers."""
        self._quiet()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Tear down; the node can be configured again."""
        self._forget()
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop and tear down from any state."""
        if self._active:
            self._quiet()
        self._forget()
        return super().on_shutdown(state)

    def autostart(self) -> bool:
        """Configure and activate; return whether both went well."""
        good = TransitionCallbackReturn.SUCCESS
        return bool(self.trigger_configure() == good and self.trigger_activate() == good)

    def finish(self) -> None:
        """Shut the lifecycle down (from any state) and destroy the node."""
        self._guarded(self.trigger_shutdown)
        self.destroy_node()

    # -- inside -----------------------------------------------------------------------------------------------------

    def _quiet(self) -> None:
        for timer in self._timers_at_rest:
            timer.cancel()
        self._active = False
        self._guarded(self.stop)

    def _forget(self) -> None:
        if not self._configured:
            return
        self._configured = False
        self._guarded(self.teardown)
        for destroy, entity in reversed(self._built):
            destroy(entity)
        self._built.clear()
        self._timers_at_rest.clear()

    def _guarded(self, hook: Callable[[], object]) -> bool:
        # rclpy swallows exceptions of transition callbacks without a word.
        try:
            hook()
        except Exception:
            self.get_logger().error(f"{hook.__name__} failed:\n{traceback.format_exc()}")
            return False
        return True

    def _publish_diagnostics(self) -> None:
        message = DiagnosticArray()
        message.header.stamp = self.get_clock().now().to_msg()
        lifecycle = Status("lifecycle", Level.ERROR if self.failure else Level.OK, self.failure or self._state_name())
        entries = [lifecycle, self.health.status(), *(self.report() if self._configured else ())]
        message.status = [_to_message(self.get_name(), entry) for entry in entries]
        self._diagnostics.publish(message)

    def _state_name(self) -> str:
        return "active" if self._active else "inactive" if self._configured else "unconfigured"


def monotonic_ns() -> int:
    """Return the clock that judges staleness."""
    return time.monotonic_ns()


def run(make: Callable[[], Sequence[BaseNode[Any]]], args: Sequence[str] | None = None) -> int:
    """Run a process of nodes until SIGINT or SIGTERM.

    Args:
        make: makes the nodes, once rclpy is up.
        args: command line; None is sys.argv.

    Returns:
        Exit status: 0 after a signal; 1 when a node could not be made or, autostarted, not be configured.
    """
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    signals = _Signals()
    nodes: Sequence[BaseNode[Any]] = ()
    try:
        nodes = make()
        if not all(node.autostart() for node in nodes if wants_autostart(node)):
            return 1
        signals.starting = False
        _spin(nodes, signals)
    except _StoppedEarly:
        # In the middle of a transition (loading a policy takes seconds) there is nothing to hand back in order.
        nodes = ()
    except (ConfigError, ContractError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        for node in nodes:
            node.finish()
        rclpy.try_shutdown()
    return 0


class _StoppedEarly(BaseException):
    """A signal came before the nodes were up. Not an Exception: transitions catch those."""


class _Signals:
    """SIGINT and SIGTERM: noted while the nodes run, raised while they start."""

    def __init__(self) -> None:
        self.starting, self.received = True, False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, *_: object) -> None:
        if self.starting and not self.received:
            self.received = True
            raise _StoppedEarly
        self.received = True


def wants_autostart(node: BaseNode[Any]) -> bool:
    """Return the node's `autostart` parameter (every node has it)."""
    return bool(node.get_parameter("autostart").value)


def make_executor(context: Context | None = None) -> Executor:
    """Return the executor that nodes run in; spin it with `spin_once` and a time-out.

    The events executor takes less than half of the processor time (four cameras and a 200 Hz state: 14 % of a core
    instead of 34 %), but without a time-out it burns a core and dispatches nothing. ROS 2 before Kilted lacks it.
    """
    try:
        from rclpy.experimental import EventsExecutor
    except ImportError:
        return SingleThreadedExecutor(context=context)
    return EventsExecutor(context=context)


def _spin(nodes: Sequence[BaseNode[Any]], signals: _Signals) -> None:
    executor = make_executor()
    for node in nodes:
        executor.add_node(node)
    try:
        while not signals.received:
            # A signal cannot wake the wait, so this bounds how long Ctrl-C takes.
            executor.spin_once(timeout_sec=0.1)
    except ExternalShutdownException:
        pass
    finally:
        executor.shutdown()


def _to_message(node: str, status: Status) -> DiagnosticStatus:
    values = [
        KeyValue(key=str(k), value=f"{v:.6g}" if isinstance(v, float) else str(v)) for k, v in status.values.items()
    ]
    return DiagnosticStatus(
        level=bytes([status.level]),
        name=f"{node}: {status.part}",
        message=status.message,
        hardware_id=node,
        values=values,
    )
