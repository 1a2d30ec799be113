import stat
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clue.metering import (
    CpuTimeMeter,
    EnergyReading,
    IdleBaseline,
    SampledMeter,
    _pmic,
    choose_meter,
    measure_energy,
    measure_idle,
)
from clue.metering._battery import BatterySensor
from clue.metering._estimate import BoardProfile
from clue.metering._hwmon import HwmonSensor, find_hwmon
from clue.metering._integrate import Integral
from clue.metering._pmic import PmicSensor, board_watts, parse_pmic_adc, read_pmic_adc
from clue.metering._rapl import RaplSensor
from clue.metering._sampled import Clocks
from clue.metering.memory import peak_memory
from clue_agent.receipts import add_result
from clue_protocol.v1.forget_pb2 import Receipt

DATA = Path(__file__).parents[1] / "data/energy"


def sysfs(root: Path, *dumps: str) -> Path:
    """A folder that looks like /sys, from recordings of the form ``path:value``."""
    for dump in dumps:
        for line in (DATA / f"{dump}.sysfs").read_text().splitlines():
            path, _, value = line.rpartition(":")
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(f"{value}\n")
    return root


def pmic(name: str) -> str:
    return (DATA / f"pmic-{name}.txt").read_text()


def no_pmic() -> str:
    raise OSError("no vcgencmd here")


# --- Raspberry Pi 5 ---


@pytest.mark.parametrize(
    ("name", "rails_watts", "watts"),
    [("idle", 1.766707, 2.610956), ("load", 10.799894, 12.954859), ("unpadded", 1.898454, 2.761820)],
)
def test_rails_of_real_boards(name: str, rails_watts: float, watts: float) -> None:
    rails = parse_pmic_adc(pmic(name))
    assert len(rails) == 12
    assert sum(rails.values()) == pytest.approx(rails_watts, abs=1e-5)
    assert board_watts(rails) == PmicSensor(lambda: pmic(name)).read() == pytest.approx(watts, abs=1e-5)


def test_the_short_format_says_the_same() -> None:
    assert parse_pmic_adc(pmic("short")) == pytest.approx(parse_pmic_adc(pmic("idle")), abs=1e-3)


@pytest.mark.parametrize("text", [pmic("unregistered"), "", "\n", "temp=48.3'C", pmic("idle")[:400]])
def test_other_answers_are_errors(text: str) -> None:
    with pytest.raises(ValueError, match="VDD_CORE"):
        parse_pmic_adc(text)


RAILS = st.dictionaries(
    st.from_regex(r"[0-9A-Z]{1,4}(_[0-9A-Z]{1,4}){0,2}", fullmatch=True).filter(lambda n: n not in ("EXT5V", "BATT")),
    st.tuples(st.floats(-0.01, 20), st.floats(0, 6)),
    min_size=1,
)


@given(rails=RAILS, short=st.booleans(), pad=st.integers(0, 8), data=st.data())
def test_whatever_rails_a_firmware_has_they_are_paired_by_name(rails, short, pad, data) -> None:
    rails["VDD_CORE"] = (1.5, 0.8)
    lines = ["EXT5V_V volt(24)=5.1V", "EXT5V_A current(26)=9.0A", "a line about something else"]
    for channel, (rail, (amps, volts)) in enumerate(rails.items()):
        for kind, word, value in (("A", "current", amps), ("V", "volt", volts)):
            between = "" if short else f" {word}({channel})"
            lines.append(f"{' ' * pad}{rail}_{kind}{between}={value:.8f}{kind}")
    watts = parse_pmic_adc("\n".join(data.draw(st.permutations(lines))))
    assert watts == pytest.approx({rail: amps * volts for rail, (amps, volts) in rails.items()}, abs=1e-6)


@given(st.text(max_size=200))
def test_no_text_breaks_the_parser(text: str) -> None:
    with pytest.raises(ValueError, match="VDD_CORE"):
        parse_pmic_adc(text)


def test_a_rail_that_is_gone_is_an_error() -> None:
    answers = [pmic("idle"), "\n".join(line for line in pmic("idle").splitlines() if "HDMI" not in line)]
    sensor = PmicSensor(lambda: answers.pop(0))
    with pytest.raises(ValueError, match="lacks HDMI"):
        sensor.read()


@pytest.fixture
def vcgencmd(tmp_path, monkeypatch):
    """Puts a shell script in the place of vcgencmd."""

    def install(body: str) -> None:
        script = tmp_path / "vcgencmd"
        script.write_text(f"#!/bin/sh\n{body}\n")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    return install


def test_the_command_is_run(vcgencmd) -> None:
    vcgencmd(f'test "$1" = pmic_read_adc && cat {DATA}/pmic-load.txt')
    assert PmicSensor(read_pmic_adc).read() == pytest.approx(12.954859)


def test_a_command_that_fails_hangs_or_is_not_there(vcgencmd, monkeypatch, tmp_path) -> None:
    vcgencmd("echo Can\\'t open device file >&2; exit 255")
    with pytest.raises(OSError, match=r"Can't open device file.*group video"):
        read_pmic_adc()
    vcgencmd("exec sleep 5")
    monkeypatch.setattr(_pmic, "_TIMEOUT_SECONDS", 0.05)
    with pytest.raises(OSError, match="did not answer"):
        read_pmic_adc()
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(OSError, match="vcgencmd"):
        read_pmic_adc()


# --- INA power monitors ---


@pytest.mark.parametrize(
    ("dump", "source", "watts", "scope"),
    [
        ("ina219", "ina219", 6.22, "hwmon2"),
        ("ina226", "ina226", 3.075, "hwmon10"),
        ("ina260", "ina260", 2.19, "hwmon1"),
        ("ina3221", "ina3221", 5.072 * 0.428, "POM_5V_IN"),
        ("ina3221-plain", "ina3221", 2.0, "channel 1"),
    ],
)
def test_ina_chips(tmp_path, dump: str, source: str, watts: float, scope: str) -> None:
    sensor = find_hwmon(sysfs(tmp_path, dump))
    assert sensor.source == source
    assert sensor.read() == pytest.approx(watts)
    assert scope in sensor.scope


def test_channels_without_a_supply_among_them_are_added_up(tmp_path) -> None:
    chip = sysfs(tmp_path, "ina3221") / "class/hwmon/hwmon3"
    (chip / "in1_label").write_text("VDD_SOC")
    assert HwmonSensor(chip).read() == pytest.approx(5.072 * 0.428 + 5.064 * 0.016 + 5.064 * 0.128)


def test_the_chip_on_the_supply_goes_before_others(tmp_path) -> None:
    assert find_hwmon(sysfs(tmp_path, "ina219", "ina226", "ina3221")).scope.startswith("ina3221")
    (tmp_path / "class/hwmon/hwmon3/in1_label").write_text("left motor")
    assert find_hwmon(tmp_path).scope.startswith("ina219 (hwmon2)"), "hwmon2 comes before hwmon10"


def test_a_chip_that_cannot_be_read_is_no_meter(tmp_path) -> None:
    (sysfs(tmp_path, "ina219") / "class/hwmon/hwmon2/power1_input").write_text("")
    with pytest.raises(OSError, match="no INA"):
        find_hwmon(tmp_path)
    with pytest.raises(ValueError, match="rpi_volt"):
        HwmonSensor(tmp_path / "class/hwmon/hwmon1")


@given(
    values=st.lists(st.tuples(st.integers(-5000, 5000), st.integers(0, 26000), st.booleans()), min_size=1, max_size=3)
)
def test_an_ina3221_adds_what_is_in_use(tmp_path_factory, values) -> None:
    chip = tmp_path_factory.mktemp("hwmon0")
    (chip / "name").write_text("ina3221\n")
    for number, (milliamps, millivolts, enabled) in enumerate(values, 1):
        (chip / f"curr{number}_input").write_text(f"{milliamps}\n")
        (chip / f"in{number}_input").write_text(f"{millivolts}\n")
        (chip / f"in{number}_enable").write_text(f"{enabled:d}\n")
    if any(enabled for *_, enabled in values):
        expected = sum(abs(amps * volts) / 1e6 for amps, volts, enabled in values if enabled)
        assert HwmonSensor(chip).read() == pytest.approx(expected)
    else:
        with pytest.raises(OSError, match="no channel in use"):
            HwmonSensor(chip)


# --- batteries ---


@pytest.mark.parametrize(
    ("dump", "watts", "name"), [("battery-power", 8.642, "BAT0"), ("battery-current", 3.905 * 0.412, "axp20x")]
)
def test_battery_gauges(tmp_path, dump: str, watts: float, name: str) -> None:
    sensor = BatterySensor(sysfs(tmp_path, dump))
    assert sensor.read() == pytest.approx(watts)
    assert name in sensor.scope
    assert "hidpp" not in sensor.scope, "a mouse's battery"


@pytest.mark.parametrize(
    ("attribute", "value", "error"),
    [
        ("status", "Charging", "not run on battery"),
        ("power_now", "0", "0 W"),
        ("power_now", "n/a", "no whole number"),
        ("type", "UPS", "no battery"),
    ],
)
def test_a_battery_that_gives_no_power_is_no_meter(tmp_path, attribute: str, value: str, error: str) -> None:
    (sysfs(tmp_path, "battery-power") / "class/power_supply/BAT0" / attribute).write_text(value)
    with pytest.raises((OSError, ValueError), match=error):
        BatterySensor(tmp_path)


# --- RAPL ---


def test_rapl_counts_packages_once_and_unwraps(tmp_path) -> None:
    zones = sysfs(tmp_path, "rapl") / "class/powercap"
    sensor = RaplSensor(tmp_path)
    assert sensor.scope == "1 CPU package(s)"
    assert sensor.read() == 0
    (zones / "intel-rapl:0/energy_uj").write_text("2000000")  # wrapped
    (zones / "intel-rapl:1/energy_uj").write_text("9000000000")  # the platform holds the package: not added
    assert sensor.read() == pytest.approx(2.32885)
    (zones / "intel-rapl:0/energy_uj").write_text("3000000")
    assert sensor.read() == pytest.approx(3.32885)


def test_rapl_of_two_packages_and_of_a_platform_alone(tmp_path) -> None:
    zones = sysfs(tmp_path, "rapl") / "class/powercap"
    (zones / "intel-rapl:1/name").write_text("package-1")
    sensor = RaplSensor(tmp_path)
    (zones / "intel-rapl:0/energy_uj").write_text("262143250000")
    (zones / "intel-rapl:1/energy_uj").write_text("5001500000")
    assert sensor.read() == pytest.approx(1.75)
    for name in ("intel-rapl:0", "intel-rapl:1"):
        (zones / name / "name").write_text("psys")
    assert "platform" in RaplSensor(tmp_path).scope


def test_rapl_that_cannot_be_read_is_no_meter(tmp_path) -> None:
    with pytest.raises(OSError, match="no RAPL"):
        RaplSensor(tmp_path)
    (sysfs(tmp_path, "rapl") / "class/powercap/intel-rapl:0/energy_uj").unlink()
    with pytest.raises(OSError, match="energy_uj"):
        RaplSensor(tmp_path)


# --- the choice ---

ALL = ("ina219", "rapl", "battery-power")


@pytest.mark.parametrize(
    ("dumps", "adc", "source"),
    [
        (ALL, "idle", "pmic"),
        (ALL, "unregistered", "ina219"),
        (("rapl", "battery-power"), None, "rapl"),
        (("battery-power",), None, "battery"),
        ((), None, "estimated"),
    ],
)
def test_the_best_meter_that_works_is_chosen(tmp_path, dumps, adc, source: str) -> None:
    meter = choose_meter(sysfs(tmp_path, *dumps), pmic_adc=(lambda: pmic(adc)) if adc else no_pmic)
    assert meter.source == source
    meter.start()
    assert meter.stop().source == source


# --- integration ---


@given(
    slope=st.floats(-2, 2),
    offset=st.floats(10, 1000),
    steps=st.lists(st.floats(0.001, 5), min_size=1, max_size=50),
)
def test_the_trapezoid_rule_is_exact_for_straight_lines(slope: float, offset: float, steps: list[float]) -> None:
    integral, t, gaps = Integral(period=1.0), 0.0, 0.0
    integral.add(t, t, offset)
    for step in steps:
        # What a clock shows is rounded: a step of just above 3 s can be 3 s by it.
        passed = (t + step) - t
        gaps += passed if passed > 3 else 0.0
        t += step
        integral.add(t, t, offset + slope * t)
    assert integral.joules == pytest.approx(offset * t + slope * t * t / 2, rel=1e-6, abs=1e-6)
    assert integral.seconds == pytest.approx(t)
    assert integral.gap_seconds == pytest.approx(gaps, abs=1e-6)


@given(gains=st.lists(st.floats(0, 100), min_size=1, max_size=30))
def test_a_counter_gives_its_difference(gains: list[float]) -> None:
    integral, count = Integral(period=10.0, cumulative=True), 12345.0
    integral.add(0, 0, count)
    for second, gain in enumerate(gains, 1):
        count += gain
        integral.add(second, second, count)
    assert integral.joules == pytest.approx(sum(gains), abs=1e-6)
    assert integral.relative_uncertainty == 0


def test_sleep_is_a_gap_that_takes_no_energy() -> None:
    integral = Integral(period=1.0)
    for awake, elapsed in ((0, 0), (1, 1), (2, 602), (3, 603)):
        integral.add(awake, elapsed, 4.0)
    assert integral.joules == pytest.approx(12)
    assert integral.gap_seconds == 601


def test_scattered_samples_and_gaps_are_less_certain() -> None:
    steady, wild, holed = (Integral(period=1.0) for _ in range(3))
    for second in range(20):
        steady.add(second, second, 5.0)
        wild.add(second, second, 5.0 + 4 * (-1) ** second)
    for second in (0, 1, 11, 12):
        holed.add(second, second, 5.0)
    assert steady.relative_uncertainty == 0
    assert wild.relative_uncertainty == pytest.approx(0.8 / 20**0.5, rel=0.05)
    assert holed.relative_uncertainty == pytest.approx(10 / 12)


# --- the sampling meter, on clocks of its own ---


class World:
    """A sensor and the clocks of a meter, under the test's control."""

    source, scope, relative_uncertainty, period, cumulative = "ina219", "a board", 0.02, 10.0, False

    def __init__(self) -> None:
        self.now = self.cpu = 0.0
        self.watts: float | None = 3.0

    def read(self) -> float:
        if self.watts is None:
            raise OSError("it was unplugged")
        return self.watts

    def meter(self) -> SampledMeter:
        """Its period is so long that only the test takes samples."""
        clocks = Clocks(awake=lambda: self.now, elapsed=lambda: self.now, cpu=lambda: self.cpu)
        return SampledMeter(self, profile=BoardProfile("a board", watts_per_core=1.5, idle_watts=2.0), clocks=clocks)

    def go_on(self, meter: SampledMeter, seconds: int, cpu_share: float = 0.0) -> None:
        """Time passes, with a sample every ten seconds."""
        for _ in range(0, seconds, 10):
            self.now += 10
            self.cpu += 10 * cpu_share
            meter.read()


def test_a_steady_load() -> None:
    world = World()
    meter = world.meter()
    meter.start()
    world.go_on(meter, 100)
    reading = meter.stop()
    assert reading.joules == reading.gross_joules == pytest.approx(300)
    assert (reading.source, reading.seconds, reading.gap_seconds, reading.idle_watts) == ("ina219", 100, 0, 0)
    assert reading.relative_uncertainty == pytest.approx(0.02)
    assert "idle included" in reading.detail
    world.now += 1000
    assert meter.stop() == meter.read() == reading


def test_idle_is_subtracted_and_both_figures_are_kept() -> None:
    world = World()
    meter = world.meter()
    meter.start(IdleBaseline(2.0, "ina219", 30, 0.02))
    world.go_on(meter, 100)
    reading = meter.stop()
    assert reading.joules == pytest.approx(100)
    assert reading.gross_joules == pytest.approx(300)
    assert reading.idle_watts == 2.0
    assert reading.relative_uncertainty == pytest.approx((6**2 + 4**2) ** 0.5 / 100), "6 J of 300 and 4 J of 200"
    assert "idle of 2.00 W subtracted" in reading.detail


def test_less_than_idle_is_nothing_and_another_source_s_idle_is_left_alone() -> None:
    world = World()
    meter = world.meter()
    meter.start(IdleBaseline(3.5, "ina219"))
    world.go_on(meter, 50)
    reading = meter.stop()
    assert (reading.joules, reading.gross_joules) == (0, 150)
    assert "no more than idle" in reading.detail
    meter.start(IdleBaseline(2.0, "battery"))
    world.go_on(meter, 50)
    assert meter.stop().joules == 150
    assert "the baseline is of battery" in meter.read().detail


def test_a_gap_is_bridged_and_reported() -> None:
    world = World()
    meter = world.meter()
    meter.start()
    world.go_on(meter, 20)
    world.watts = None
    world.go_on(meter, 60)
    world.watts = 5.0
    world.go_on(meter, 10)
    reading = meter.stop()
    assert reading.joules == pytest.approx(20 * 3 + 70 * (3 + 5) / 2)
    assert reading.gap_seconds == 70
    assert reading.source == "ina219"
    assert "70.0 s without a sample" in reading.detail
    assert reading.relative_uncertainty > 0.5


@pytest.mark.parametrize(("baseline", "idle"), [(None, 2.0), (IdleBaseline(1.0, "ina219"), 1.0)])
def test_a_meter_that_dies_leaves_the_rest_to_the_estimate(baseline, idle: float) -> None:
    world = World()
    meter = world.meter()
    meter.start(baseline)
    world.go_on(meter, 100, cpu_share=1.0)
    world.watts = None
    world.go_on(meter, 50, cpu_share=2.0)
    reading = meter.stop()
    rest = 50 * 2 * 1.5 + 50 * idle
    assert reading.gross_joules == pytest.approx(300 + rest)
    assert reading.joules == pytest.approx(300 + rest - (150 * idle if baseline else 0))
    assert reading.source == "ina219+estimated"
    assert reading.gap_seconds == 50
    assert "50.0 s of it estimated from 100.0 CPU s" in reading.detail
    assert "ina219 fell silent (it was unplugged)" in reading.detail
    assert reading.relative_uncertainty > 0.3


def test_one_lost_sample_at_the_end_is_no_reason_to_estimate() -> None:
    world = World()
    meter = world.meter()
    meter.start()
    world.go_on(meter, 50)
    world.watts = None
    world.go_on(meter, 10)
    reading = meter.stop()
    assert (reading.source, reading.gap_seconds) == ("ina219", 0)
    assert reading.joules == pytest.approx(180)


def test_a_meter_that_never_answers_is_an_estimate() -> None:
    world = World()
    world.watts = None
    meter = world.meter()
    meter.start()
    world.go_on(meter, 100, cpu_share=0.5)
    reading = meter.stop()
    assert reading.source == "estimated"
    assert (reading.joules, reading.gross_joules) == (75, 275)
    assert "ina219 fell silent (it was unplugged)" in reading.detail


def test_a_first_answer_that_is_late_leaves_the_start_to_the_estimate() -> None:
    world = World()
    world.watts = None
    meter = world.meter()
    meter.start()
    world.go_on(meter, 100, cpu_share=1.0)
    world.watts = 4.0
    world.go_on(meter, 100, cpu_share=1.0)
    reading = meter.stop()
    assert reading.source == "ina219+estimated"
    assert reading.gross_joules == pytest.approx(90 * 4 + 110 * (1.5 + 2.0)), "the first good sample came at 110 s"


def test_a_meter_that_was_not_started_says_so() -> None:
    with pytest.raises(RuntimeError, match="start"):
        World().meter().stop()
    with pytest.raises(ValueError, match="positive"):
        SampledMeter(World(), period=0)


# --- the sampling meter, with its thread ---


class Ramp:
    """Power that grows by 10 W a second."""

    source, scope, relative_uncertainty, period, cumulative = "ramp", "", 0.0, 0.05, False

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.reads = 0

    def read(self) -> float:
        self.reads += 1
        return 10 * self.age

    @property
    def age(self) -> float:
        return time.monotonic() - self.started


def test_the_thread_samples_and_ends() -> None:
    threads = threading.active_count()
    sensor = Ramp()
    meter = SampledMeter(sensor)
    before_start = sensor.age
    meter.start()
    after_start = sensor.age
    assert threading.active_count() == threads + 1
    while sensor.reads < 8:
        time.sleep(0.01)
    half = meter.read()
    before_stop = sensor.age
    reading = meter.stop()
    after_stop = sensor.age
    assert threading.active_count() == threads
    assert 0 < half.joules < reading.joules
    # Between these moments, however long a busy machine took over starting and stopping.
    least, most = 5 * (before_stop**2 - after_start**2), 5 * (after_stop**2 - before_start**2)
    assert 0.9 * least <= reading.joules <= 1.1 * most
    assert f"{sensor.reads} samples in" in reading.detail


def test_starting_again_ends_the_interval_before() -> None:
    threads = threading.active_count()
    meter = SampledMeter(Ramp())
    meter.start()
    meter.start()
    assert threading.active_count() == threads + 1
    meter.stop()
    assert threading.active_count() == threads


def test_a_block_on_a_recorded_tree(tmp_path) -> None:
    meter = choose_meter(sysfs(tmp_path, "ina219"), pmic_adc=no_pmic)
    with measure_energy(meter, baseline_seconds=0.1) as energy:
        (tmp_path / "class/hwmon/hwmon2/power1_input").write_text("9220000")
        started = time.monotonic()
        time.sleep(0.6)
        assert energy.reading().gross_joules > 0
        seconds = time.monotonic() - started
    reading = energy.reading()
    assert reading.idle_watts == pytest.approx(6.22)
    assert 6.22 * seconds < reading.gross_joules < 9.22 * seconds * 2
    assert 0 < reading.joules < reading.gross_joules
    assert reading == energy.reading()


def test_idle_power(tmp_path) -> None:
    idle = measure_idle(0.1, choose_meter(sysfs(tmp_path, "ina260"), pmic_adc=no_pmic))
    assert (idle.source, idle.relative_uncertainty) == ("ina260", pytest.approx(0.01))
    assert idle.watts == pytest.approx(2.19)
    assert 0.1 < idle.seconds < 30
    model = tmp_path / "model"
    model.write_text("Raspberry Pi Zero 2 W Rev 1.0\0")
    started = time.monotonic()
    assert measure_idle(60, CpuTimeMeter(model)).watts == 0.6
    assert time.monotonic() - started < 30, "a figure from a table takes no time"
    with pytest.raises(ValueError, match="positive"):
        measure_idle(0)
    with pytest.raises(ValueError, match="negative"), measure_energy(CpuTimeMeter(), baseline_seconds=-1):
        pass


# --- the estimate ---


@pytest.mark.parametrize(
    ("board", "per_core", "idle"),
    [
        ("Raspberry Pi 5 Model B Rev 1.0\0", 1.4, 2.6),
        ("Raspberry Pi 4 Model B\0", 0.95, 2.7),
        ("Raspberry Pi Compute Module 4 Rev 1.1\0", 0.95, 2.7),
        ("Raspberry Pi Zero 2 W Rev 1.0\0", 0.45, 0.6),
    ],
)
def test_the_estimate_names_the_board(tmp_path, board: str, per_core: float, idle: float) -> None:
    model = tmp_path / "model"
    model.write_text(board)
    cpu, clock = iter([5.0, 25.0]), iter([100.0, 110.0])
    meter = CpuTimeMeter(model, cpu_clock=lambda: next(cpu), clock=lambda: next(clock))
    meter.start()
    reading = meter.stop()
    assert reading.source == "estimated"
    assert f"{per_core:g} W per busy core ({board.strip(chr(0))})" in reading.detail
    assert reading.joules == pytest.approx(20 * per_core)
    assert reading.gross_joules == pytest.approx(20 * per_core + 10 * idle)
    assert reading.idle_watts == idle
    assert reading.relative_uncertainty == 1.0


def test_the_estimate_counts_this_process(tmp_path) -> None:
    meter = CpuTimeMeter(tmp_path / "missing")
    meter.start()
    ends = time.process_time() + 0.05
    while time.process_time() < ends:
        pass
    reading = meter.stop()
    assert reading.joules > 0
    assert "generic" in reading.detail
    assert "idle power unknown" in reading.detail


class Counting:
    """A meter that counts how often it was asked."""

    source = "fake"

    def __init__(self) -> None:
        self.asked = 0

    def start(self, baseline: IdleBaseline | None = None) -> None:
        self.asked = 0

    def read(self) -> EnergyReading:
        self.asked += 1
        return EnergyReading(float(self.asked), "fake", "", 0.0)

    def stop(self) -> EnergyReading:
        return self.read()


def test_the_reading_of_a_finished_block_stays() -> None:
    with measure_energy(Counting()) as energy:
        assert energy.reading().joules == 1.0
    assert energy.reading().joules == energy.reading().joules == 2.0
    assert asdict(energy.reading())["gap_seconds"] == 0.0


def test_peak_memory_sees_a_large_block() -> None:
    with peak_memory() as small:
        pass
    with peak_memory() as large:
        block = bytearray(64 * 2**20)
        block[::4096] = b"x" * len(block[::4096])
        del block
    assert large.peak_bytes >= small.peak_bytes
    assert large.peak_bytes > 64 * 2**20


def test_a_receipt_takes_what_it_has_room_for() -> None:
    reading = EnergyReading(3.0, "ina219", "a board", 0.02, gross_joules=9.0, idle_watts=2.0, seconds=3.0)
    result = {"method": "clue", "hyperparameters": {}, "seconds": 3.0, "energy": asdict(reading)}
    receipt = Receipt()
    add_result(receipt, result | {"peak_memory_bytes": 1, "samples": 0})
    assert (receipt.energy.joules, receipt.energy.source, receipt.energy.detail) == (3.0, "ina219", "a board")
