//! The tokens that stand for a picture in a text, as transformers' processors write them.

use std::ops::Range;

use anyhow::{bail, ensure, Context, Result};
use ln_tuning::models::{ImageTextToTextConfig, ModelConfig};
use serde_json::{Map, Value};
use tokenizers::Tokenizer;

use crate::text::files::TextFiles;
use crate::text::special::special_tokens;

use super::mentions::MARK;

/// The processor of a model of images and texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// `LlavaProcessor`: image tokens alone.
    Llava,
    /// `LlavaNextProcessor`: as many of them as tiles have parts that are no padding.
    LlavaNext,
    /// `Qwen2_5_VLProcessor` and `Qwen3VLProcessor`: as many as there are squares of patches.
    QwenVl,
    /// `Gemma3Processor`: between a beginning and an end.
    Gemma3,
    /// `Idefics3Processor` and `SmolVLMProcessor`: tiles in rows and columns, then the whole.
    Idefics3,
}

/// The models, and the processor of each.
const FORMS: [(&str, Form); 7] = [
    ("llava", Form::Llava),
    ("llava_next", Form::LlavaNext),
    ("qwen2_5_vl", Form::QwenVl),
    ("qwen3_vl", Form::QwenVl),
    ("gemma3", Form::Gemma3),
    ("idefics3", Form::Idefics3),
    ("smolvlm", Form::Idefics3),
];

/// The types of models that pictures are shown to.
pub fn model_types() -> Vec<&'static str> {
    FORMS.iter().map(|(name, _)| *name).collect()
}

/// The facts that the image tokens of a picture follow from: the rows and columns of
/// [`Processor::grid`](crate::pictures::Processor::grid).
pub type Grid = (usize, usize);

#[derive(Debug, Clone)]
pub struct ImageTokens {
    form: Form,
    /// The text that a chat template writes for a picture.
    pub mark: String,
    /// The text of a picture in data, where the mark has others around it.
    pub written: String,
    /// The token that gives way to what the model sees.
    pub token: String,
    pub id: u32,
    /// Image tokens of a tile; patches of one token, where pictures are cut into patches.
    pub count: usize,
    begin: String,
    end: String,
    /// Counts the tokens of pictures in tiles.
    model: Option<Box<ImageTextToTextConfig>>,
}

/// A text in which pictures have their tokens.
pub struct Expanded {
    pub text: String,
    /// The places of the pictures.
    pub pictures: Vec<Range<usize>>,
    /// Image tokens.
    pub count: usize,
    /// The places of the marks in the text before.
    marks: Vec<Range<usize>>,
}

impl ImageTokens {
    /// Those of a model; `None` if it takes text alone.
    pub fn open(config: &Value, words: &TextFiles, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let model_type = config["model_type"].as_str().unwrap_or_default();
        let Some((_, form)) = FORMS.iter().find(|(name, _)| *name == model_type) else {
            return Ok(None);
        };
        let given = words.json("processor_config.json")?;
        let special = special_tokens(words)?;
        let token = |name: &str, usual: &str| named(&special, &given, name, usual);
        let (mark, image, begin, end) = match form {
            Form::Llava | Form::LlavaNext => {
                let image = token("image_token", "<image>");
                (image.clone(), image, String::new(), String::new())
            }
            Form::QwenVl => {
                let image = token("image_token", "<|image_pad|>");
                let begin = token("vision_start_token", "<|vision_start|>");
                (image.clone(), image, begin, token("vision_end_token", "<|vision_end|>"))
            }
            Form::Gemma3 => {
                let begin = token("boi_token", "<start_of_image>");
                let image = token("image_token", "<image_soft_token>");
                (begin.clone(), image, begin, token("eoi_token", "<end_of_image>"))
            }
            Form::Idefics3 => {
                let image = token("image_token", "<image>");
                let begin = token("fake_image_token", "<fake_token_around_image>");
                (image.clone(), image, begin, token("global_image_token", "<global-img>"))
            }
        };
        let id = tokenizer.token_to_id(&image).with_context(|| {
            format!(
                "{} has no token '{image}', which stands for pictures",
                words.place("tokenizer.json")
            )
        })?;
        let of_model = ["image_token_index", "image_token_id"]
            .iter()
            .find_map(|key| config.get(*key)?.as_u64());
        ensure!(
            of_model.is_none_or(|own| own == u64::from(id)),
            "the tokenizer's '{image}' is {id}, and the image token of the model's config.json is {}",
            of_model.unwrap_or_default()
        );
        let count =
            count(*form, config, &given).context("config.json and processor_config.json")?;
        let written = match form {
            Form::QwenVl => format!("{begin}{image}{end}"),
            _ => mark.clone(),
        };
        let model = (*form == Form::LlavaNext)
            .then(|| ImageTextToTextConfig::from_value(config).map(Box::new))
            .transpose()?;
        let (form, token) = (*form, image);
        Ok(Some(ImageTokens { form, mark, written, token, id, count, begin, end, model }))
    }

    /// Set for a model that must know the sizes of pictures; true if it takes those in patches.
    pub fn needs_sizes(&self) -> Option<bool> {
        match self.form {
            Form::LlavaNext => Some(false),
            Form::QwenVl => Some(true),
            _ => None,
        }
    }

    /// The marks of pictures in data.
    pub fn marks(&self) -> Vec<String> {
        let mut marks = vec![MARK.to_owned()];
        if self.written != MARK {
            marks.push(self.written.clone());
        }
        marks
    }

    /// The number of a picture's image tokens.
    fn tokens(&self, (rows, columns): Grid) -> Result<usize> {
        Ok(match (&self.model, self.form) {
            (Some(model), _) => model.image_tokens(rows as i64, columns as i64)? as usize,
            (None, Form::QwenVl) => rows * columns / self.count,
            (None, _) => self.count * (1 + rows * columns),
        })
    }

    /// The text of a picture that is cut into such a grid, and has so many image tokens.
    fn picture(&self, (rows, columns): Grid, tokens: usize) -> String {
        let ImageTokens { begin, end, .. } = self;
        let image = self.token.repeat(self.count);
        match self.form {
            Form::Llava | Form::LlavaNext | Form::QwenVl => self.token.repeat(tokens),
            Form::Gemma3 => {
                let whole = format!("\n\n{begin}{image}{end}\n\n");
                if rows * columns == 0 {
                    return whole;
                }
                let crops = vec![whole.as_str(); rows * columns].join(" ");
                format!("Here is the original image {whole} and here are some crops to help you see better {crops}")
            }
            Form::Idefics3 => {
                let mut text = String::new();
                for row in 1..=rows {
                    for column in 1..=columns {
                        text += &format!("{begin}<row_{row}_col_{column}>{image}");
                    }
                    text.push('\n');
                }
                if rows > 0 {
                    text.push('\n');
                }
                text + &format!("{begin}{end}{image}{begin}")
            }
        }
    }

    /// Puts the tokens of pictures in the place of their marks.
    ///
    /// # Errors
    /// If there are not as many marks as pictures. `template` says that a chat template wrote the text.
    pub fn expand(&self, text: &str, grids: &[Grid], template: bool) -> Result<Expanded> {
        let marks: Vec<Range<usize>> =
            text.match_indices(&*self.mark).map(|(at, mark)| at..at + mark.len()).collect();
        if marks.len() != grids.len() {
            let who = if template { "the chat template writes" } else { "the text has" };
            bail!(
                "{who} '{}' {} times for {} pictures, expected once for each: give as many pictures as there \
                 are marks, and write one that stands for no picture in another way",
                self.mark,
                marks.len(),
                grids.len()
            );
        }
        let (mut new, mut pictures, mut last, mut count) = (String::new(), Vec::new(), 0, 0);
        for (mark, grid) in marks.iter().zip(grids) {
            new += &text[last..mark.start];
            let start = new.len();
            let tokens = self.tokens(*grid)?;
            new += &self.picture(*grid, tokens);
            pictures.push(start..new.len());
            last = mark.end;
            count += tokens;
        }
        new += &text[last..];
        Ok(Expanded { text: new, pictures, count, marks })
    }
}

impl Expanded {
    /// A text without pictures.
    pub fn plain(text: &str) -> Self {
        Expanded { text: text.to_owned(), pictures: Vec::new(), count: 0, marks: Vec::new() }
    }

    /// The place of something in the text before.
    pub fn moved(&self, range: &Range<usize>) -> Range<usize> {
        let place = |at: usize| {
            let before =
                self.marks.iter().zip(&self.pictures).take_while(|(mark, _)| mark.end <= at);
            before.last().map_or(at, |(mark, picture)| picture.end + (at - mark.end))
        };
        place(range.start)..place(range.end)
    }
}

/// A special token: the tokenizer's, else the processor's, else the usual one.
fn named(special: &Map<String, Value>, given: &Value, name: &str, usual: &str) -> String {
    let found = special.get(name).or_else(|| given.get(name));
    let text = found.and_then(|token| token.as_str().or_else(|| token.get("content")?.as_str()));
    text.unwrap_or(usual).to_owned()
}

/// Image tokens of a tile. What the processor's file does not say follows from the model; what it says must fit.
fn count(form: Form, config: &Value, given: &Value) -> Result<usize> {
    let number = |value: &Value| value.as_u64().filter(|number| (1..1 << 20).contains(number));
    let vision = &config["vision_config"];
    let of = |value: &Value, name: &str, usual: u64| match value {
        Value::Null => Ok(usual),
        other => {
            number(other).with_context(|| format!("'{name}' is {other}, expected a number above 0"))
        }
    };
    let (name, found, model) = match form {
        Form::QwenVl => {
            let merge = of(&vision["spatial_merge_size"], "vision_config.spatial_merge_size", 2)?;
            ("merge_size", None, merge.pow(2))
        }
        Form::Llava | Form::LlavaNext => {
            let size = of(&vision["image_size"], "vision_config.image_size", 336)?;
            let own = of(&vision["patch_size"], "vision_config.patch_size", 14)?;
            let strategy =
                |file: &Value| file["vision_feature_select_strategy"].as_str().map(str::to_owned);
            let own_strategy = strategy(config).unwrap_or_else(|| "default".into());
            // A tower of CLIP has a token of the class before those of the patches.
            let class = u64::from(
                vision["model_type"].as_str().is_none_or(|kind| kind.starts_with("clip")),
            );
            let tokens = |patch: u64, more: u64, strategy: &str| {
                ((size / patch).pow(2) + more).saturating_sub(u64::from(strategy == "default"))
            };
            let model = tokens(own, class, &own_strategy);
            let patch = of(&given["patch_size"], "patch_size", own)?;
            let more = given["num_additional_image_tokens"].as_u64().unwrap_or(class);
            let found = tokens(patch, more, &strategy(given).unwrap_or(own_strategy));
            (
                "patch_size, num_additional_image_tokens and vision_feature_select_strategy",
                Some(found),
                model,
            )
        }
        Form::Gemma3 => {
            let model = of(&config["mm_tokens_per_image"], "mm_tokens_per_image", 256)?;
            ("image_seq_length", number(&given["image_seq_length"]), model)
        }
        Form::Idefics3 => {
            let size = of(&vision["image_size"], "vision_config.image_size", 224)?;
            let patch = of(&vision["patch_size"], "vision_config.patch_size", 32)?;
            let scale = of(&config["scale_factor"], "scale_factor", 2)?;
            ("image_seq_len", number(&given["image_seq_len"]), (size / patch).pow(2) / scale.pow(2))
        }
    };
    let found = found.unwrap_or(model);
    ensure!(
        found == model && model > 0,
        "the processor gives a picture {found} image tokens ({name}), and the model {model}: mend processor_config.json"
    );
    Ok(model as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_sees_with_every_model_that_sees() {
        for model_type in ImageTextToTextConfig::model_types() {
            assert!(FORMS.iter().any(|(name, _)| *name == model_type), "{model_type}");
        }
    }
}
