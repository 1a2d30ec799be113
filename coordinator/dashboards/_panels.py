"""The few kinds of panels and variables that all dashboards are made of."""

from dataclasses import dataclass

from grafana_foundation_sdk.builders import bargauge, common, heatmap, stat, table, timeseries
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")


@dataclass(frozen=True)
class Query:
    """An expression and what its series are called, such as ``{{state}}``."""

    expr: str
    legend: str = ""


def dashboard(uid: str, title: str, description: str) -> builders.Dashboard:
    """An empty dashboard with the data source to choose."""
    link = builders.DashboardLink("CLUE").type(models.DashboardLinkType.DASHBOARDS).tags(["clue"]).as_dropdown(True)
    return (
        builders.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["clue"])
        .readonly()
        .refresh("30s")
        .time("now-6h", "now")
        .timezone("browser")
        .link(link.keep_time(True))
        .with_variable(builders.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    )


def variable(name: str, label: str, query: str, *, every: bool = False) -> builders.QueryVariable:
    """One of the values that a label has; ``every``: also all of them."""
    made = (
        builders.QueryVariable(name)
        .label(label)
        .query({"query": query, "refId": name})
        .datasource(SOURCE)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
    )
    return made.multi(True).include_all(True).all_value(".+") if every else made


def number(name: str, label: str, default: str, description: str) -> builders.TextBoxVariable:
    """A figure that the reader types in."""
    return builders.TextBoxVariable(name).label(label).default_value(default).description(description)


def value(
    title: str, unit: str, query: Query, *, description: str = "", bad_above: float | None = None, never: str = ""
) -> stat.Panel:
    """One figure as it is now. ``never`` is what -1 means: it has not been yet."""
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .span(4)
        .height(4)
        .graph_mode(common_models.BigValueGraphMode.NONE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .with_target(_target(query).instant())
    )
    steps = [models.Threshold(value=None, color="blue")]
    if bad_above is not None:
        steps.append(models.Threshold(value=bad_above, color="orange"))
    panel.thresholds(builders.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps))
    if never:
        result = models.ValueMappingResult(text=never)
        panel.mappings([models.ValueMap(options={"-1": result})])
    return panel


def lines(title: str, unit: str, *queries: Query, description: str = "", span: int = 12) -> timeseries.Panel:
    """Lines over time."""
    panel = timeseries.Panel().title(title).description(description).datasource(SOURCE).unit(unit).span(span).height(8)
    panel.legend(
        common.VizLegendOptions()
        .show_legend(True)
        .display_mode(common_models.LegendDisplayMode.LIST)
        .placement(common_models.LegendPlacement.BOTTOM)
    )
    panel.min(0)
    for query in queries:
        panel.with_target(_target(query).range())
    return panel


def over_time(title: str, unit: str, expr: str, *, description: str = "", span: int = 12) -> heatmap.Panel:
    """A histogram's buckets over time; ``expr`` keeps the label ``le``."""
    target = _target(Query(expr, "{{le}}")).range().format(PromQueryFormat.HEATMAP).exemplar(True)
    panel = heatmap.Panel().title(title).description(description).datasource(SOURCE).span(span).height(8)
    return panel.calculate(False).unit(unit).y_axis(_y_axis(unit)).with_target(target)


def buckets(title: str, expr: str, *, description: str = "", span: int = 12) -> bargauge.Panel:
    """A histogram as it is now, one bar per bucket; ``expr`` keeps the label ``le``."""
    target = _target(Query(expr, "up to {{le}}")).instant().format(PromQueryFormat.HEATMAP)
    return (
        bargauge.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .span(span)
        .height(8)
        .orientation(common_models.VizOrientation.HORIZONTAL)
        .display_mode(common_models.BarGaugeDisplayMode.BASIC)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .with_target(target)
    )


def rows(title: str, unit: str, query: Query, *, description: str = "", span: int = 12) -> table.Panel:
    """A table of series with their values now."""
    target = _target(query).instant().format(PromQueryFormat.TABLE)
    panel = table.Panel().title(title).description(description).datasource(SOURCE).unit(unit).span(span).height(8)
    hidden = {"Time": True, "__name__": True, "job": True, "instance": True}
    organise = models.DataTransformerConfig(id_val="organize", options={"excludeByName": hidden})
    return panel.with_transformation(organise).with_target(target)


def _y_axis(unit: str) -> heatmap.YAxisConfig:
    return heatmap.YAxisConfig().unit(unit)


def _target(query: Query) -> Dataquery:
    return Dataquery().expr(query.expr).legend_format(query.legend).datasource(SOURCE)
