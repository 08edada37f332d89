//! The page of several experiments: every claim with its verdict, then each experiment with its figure and tables.

use std::{
    fmt::Write,
    path::{Path, PathBuf},
};

use super::{Experiment, ExperimentResults, FIGURE_FILE, claim, evaluate_claims};
use crate::{Result, atomic_file, run::Environment};

/// An experiment and what became of it: a section of the page.
pub struct Section {
    /// The experiment.
    pub experiment: Experiment,
    /// What is recorded of it.
    pub results: ExperimentResults,
    /// Its tables, in Markdown.
    pub tables: String,
    /// The folder of its figure.
    pub folder: PathBuf,
}

/// Writes the page to `path`.
///
/// # Errors
/// [`crate::Error::Io`] when it cannot be written.
pub fn write_page(sections: &[Section], path: &Path) -> Result<()> {
    let from = path.parent().unwrap_or(Path::new(""));
    atomic_file::write(path, page(sections, from).as_bytes())
}

/// The page in Markdown; links to the figures are as seen from the folder `from`.
fn page(sections: &[Section], from: &Path) -> String {
    let mut out = String::from(
        "# The paper's figures and tables, reproduced\n\n\
         Written by `unforget reproduce all`: every experiment's file says beforehand what is claimed and by which rule it holds. \
         \"Holds\" where all of a 95% interval is within the rule (paired bootstrap over facts), \"no\" where none of it is, and \"cannot be \
         told\" in between; a claim without an interval is about means of runs, and decided by these. [METHODOLOGY](METHODOLOGY.md) says \
         what each number means.\n\n",
    );
    let _ = writeln!(out, "{}\n\n## Claims\n", describe_machines(sections));
    out += "| | claim | paper | here | holds? |\n|---|---|---|---|---|\n";
    for section in sections {
        for claim in evaluate_claims(&section.experiment.claims, &section.results) {
            let _ = writeln!(
                out,
                "| [{}](#{}) | {}",
                paper_name(&section.experiment.name),
                section.experiment.name,
                claim::table_row(&claim)
            );
        }
    }
    for section in sections {
        out += &section_markdown(section, from);
    }
    out
}

/// One experiment.
fn section_markdown(section: &Section, from: &Path) -> String {
    let experiment = &section.experiment;
    let mut out = format!(
        "\n## <a id=\"{}\"></a>{}: {}\n\n",
        experiment.name,
        paper_name(&experiment.name),
        experiment.title
    );
    let figure = section.folder.join(FIGURE_FILE);
    if figure.is_file() {
        let link = pathdiff::diff_paths(&figure, from).unwrap_or(figure);
        let _ = writeln!(out, "![{}]({})\n", experiment.title, link.display());
    }
    out += &section.tables;
    if let Some(reading) = &experiment.notes {
        let _ = writeln!(out, "\n{}", reading.trim());
    }
    let _ = writeln!(out, "\n`unforget reproduce {}`", experiment.name);
    out
}

/// The models and the machines of the records.
fn describe_machines(sections: &[Section]) -> String {
    let environments = sections.iter().flat_map(|section| {
        let runs = section.results.runs.iter();
        runs.map(|run| &run.environment)
    });
    let mut machines: Vec<String> = environments
        .map(|environment: &Environment| {
            format!(
                "{} ({:.0} M weights) on {} {} of {}, version {}",
                environment.model.name,
                environment.model.parameters as f64 / 1e6,
                environment.threads,
                if environment.threads == 1 {
                    "thread"
                } else {
                    "threads"
                },
                environment.cpu,
                environment.version
            )
        })
        .collect();
    machines.sort();
    machines.dedup();
    let runs: usize = sections.iter().map(|s| s.results.runs.len()).sum();
    if machines.is_empty() {
        return "Nothing is recorded yet.".into();
    }
    format!("{runs} recorded runs, of {}.", machines.join("; "))
}

/// `fig2` as the paper calls it: Figure 2.
fn paper_name(name: &str) -> String {
    let numbered = [("fig", "Figure"), ("table", "Table")];
    let found = numbered
        .iter()
        .find_map(|(short, long)| Some(format!("{long} {}", name.strip_prefix(short)?)));
    found.unwrap_or_else(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_says_of_every_claim_whether_it_holds() {
        let experiment = Experiment::find("fig2").expect("it comes with the program");
        let section = Section {
            experiment,
            results: ExperimentResults::default(),
            tables: "| a table |\n".into(),
            folder: "experiments/results/fig2/small".into(),
        };
        let page = page(&[section], Path::new("docs"));
        assert!(page.contains("Nothing is recorded yet."));
        assert!(page.contains(
            "| [Figure 2](#fig2) | Plain fine-tuning learns the new facts | 95% |  | not run"
        ));
        assert!(page.contains("<a id=\"fig2\"></a>Figure 2: Learning new facts breaks known ones"));
    }
}
