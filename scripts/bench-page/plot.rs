//! Plots as SVG, by hand: bars in groups, and lines over a logarithmic axis.

use crate::figures::commas;
use core::fmt::Write as _;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 380.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 60.0;
/// Colours that also differ in brightness.
const COLOURS: [&str; 8] =
    ["#9aa0a6", "#0b5cad", "#d9822b", "#4c9f70", "#8e44ad", "#c0392b", "#16a085", "#7f8c8d"];

/// A series: its name, its place among the colours, and a value for each place of the axis.
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) colour: usize,
    pub(crate) values: Vec<Option<f64>>,
}

impl Series {
    fn colour(&self) -> &'static str {
        COLOURS[self.colour % COLOURS.len()]
    }
}

/// A picture in the making.
struct Picture {
    svg: String,
    highest: f64,
}

impl Picture {
    fn new(title: &str, series: &[Series], log: bool) -> Self {
        let values = series.iter().flat_map(|series| series.values.iter().flatten());
        let highest = values.fold(0.0_f64, |highest, value| highest.max(*value)).max(1.0);
        let power = 10_f64.powf(highest.log10().floor());
        let steps: &[f64] =
            if log { &[10.0] } else { &[1.0, 1.2, 1.6, 2.0, 2.4, 3.2, 4.0, 6.0, 8.0] };
        let round = steps.iter().map(|step| step * power).find(|round| *round >= highest);
        let highest = round.unwrap_or(power * 10.0);
        let mut picture = Self { svg: String::new(), highest };
        picture.add(format_args!(
            "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' font-family='sans-serif' \
             font-size='12'>\n<rect width='100%' height='100%' fill='white'/>"
        ));
        picture.text(LEFT, 18.0, "start", title);
        let mut x = LEFT;
        for (series, colour) in series.iter().zip(COLOURS) {
            picture
                .add(format_args!("<rect x='{x}' y='28' width='10' height='10' fill='{colour}'/>"));
            picture.text(x + 14.0, 37.0, "start", &series.name);
            x += 30.0 + 6.6 * series.name.len() as f64;
        }
        picture
    }

    fn add(&mut self, line: core::fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = writeln!(self.svg, "{line}");
    }

    fn text(&mut self, x: f64, y: f64, anchor: &str, text: &str) {
        self.add(format_args!("<text x='{x:.1}' y='{y:.1}' text-anchor='{anchor}'>{text}</text>"));
    }

    /// The place of a value, from the lowest one drawn to the highest.
    fn y(&self, value: f64, lowest: Option<f64>) -> f64 {
        let part = match lowest {
            Some(lowest) => {
                (value.max(lowest) / lowest).log10() / (self.highest / lowest).log10().max(0.1)
            }
            None => value / self.highest,
        };
        HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)
    }

    fn grid(&mut self, lowest: Option<f64>) {
        let marks = match lowest {
            Some(lowest) => {
                let powers = (0..12).map(|power| lowest * 10_f64.powi(power));
                powers.take_while(|mark| *mark <= self.highest * 1.01).collect::<Vec<_>>()
            }
            None => (0..=4).map(|part| self.highest * f64::from(part) / 4.0).collect(),
        };
        for mark in marks {
            let y = self.y(mark, lowest);
            self.add(format_args!(
                "<line x1='{LEFT}' x2='{}' y1='{y:.1}' y2='{y:.1}' stroke='#ddd'/>",
                WIDTH - RIGHT
            ));
            self.text(LEFT - 6.0, y + 4.0, "end", &commas(mark));
        }
    }

    fn end(mut self) -> String {
        self.svg += "</svg>\n";
        self.svg
    }
}

/// Bars side by side, one group for each name; `lowest` makes the axis logarithmic from there on.
pub(crate) fn bars(
    title: &str,
    names: &[String],
    series: &[Series],
    lowest: Option<f64>,
) -> String {
    let mut picture = Picture::new(title, series, lowest.is_some());
    picture.grid(lowest);
    let group = (WIDTH - LEFT - RIGHT) / names.len().max(1) as f64;
    let width = group * 0.8 / series.len().max(1) as f64;
    for (place, name) in names.iter().enumerate() {
        let x = LEFT + group * place as f64;
        // Long names take two lines, in turn.
        let line = if names.len() > 5 && place % 2 == 1 { 32.0 } else { 16.0 };
        picture.text(x + group / 2.0, HEIGHT - BOTTOM + line, "middle", name);
        for (n, series) in series.iter().enumerate() {
            let colour = series.colour();
            let Some(value) = series.values.get(place).copied().flatten() else { continue };
            let (left, top) = (x + group * 0.1 + width * n as f64, picture.y(value, lowest));
            let height = HEIGHT - BOTTOM - top;
            picture.add(format_args!(
                "<rect x='{left:.1}' y='{top:.1}' width='{width:.1}' height='{height:.1}' fill='{colour}'/>"
            ));
        }
    }
    picture.end()
}

/// Lines over places at equal distances.
pub(crate) fn lines(title: &str, names: &[String], series: &[Series]) -> String {
    let mut picture = Picture::new(title, series, false);
    picture.grid(None);
    let step = (WIDTH - LEFT - RIGHT) / names.len().max(1) as f64;
    let x = |place: usize| LEFT + step * (place as f64 + 0.5);
    for (place, name) in names.iter().enumerate() {
        picture.text(x(place), HEIGHT - BOTTOM + 16.0, "middle", name);
    }
    for series in series {
        let colour = series.colour();
        let mut points = String::new();
        for (place, value) in series.values.iter().enumerate() {
            if let Some(value) = value {
                let _ = write!(points, "{:.1},{:.1} ", x(place), picture.y(*value, None));
            }
        }
        picture.add(format_args!(
            "<polyline points='{}' fill='none' stroke='{colour}' stroke-width='2'/>",
            points.trim_end()
        ));
    }
    picture.end()
}
