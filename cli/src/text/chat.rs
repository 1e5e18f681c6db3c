//! Chat templates: Jinja, as `tokenizer_config.json` or `chat_template.jinja` hold it.

use std::path::Path;

use anyhow::{Context, Result};
use ln_tuning::{regular, ErrorKind as Kind};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{context, Environment, Error, ErrorKind, Value as Given};
use serde_json::Value;

use super::special;

pub struct ChatTemplate {
    environment: Environment<'static>,
    /// `bos_token` and its like, which templates name.
    tokens: Value,
}

impl ChatTemplate {
    /// `None` where the model has none.
    pub fn open(model: &Path) -> Result<Option<Self>> {
        let config = special::tokenizer_config(model)?;
        let file = model.join("chat_template.jinja");
        let text = match regular::read_text(&file) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == Kind::MissingFile => named(&config),
            Err(error) => return Err(error.into()),
        };
        let Some(text) = text else { return Ok(None) };
        let mut environment = Environment::new();
        environment
            .set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment
            .add_template_owned("chat", text)
            .with_context(|| format!("the chat template of '{}'", model.display()))?;
        let mut tokens = serde_json::json!({});
        for name in ["bos_token", "eos_token", "pad_token", "unk_token"] {
            if let Some(token) = special::special(&config, name) {
                tokens[name] = token.into();
            }
        }
        Ok(Some(ChatTemplate { environment, tokens }))
    }

    /// The text of a conversation; with `open` followed by the head of a reply.
    pub fn render(&self, messages: &[Value], open: bool) -> Result<String> {
        let template = self.environment.get_template("chat")?;
        let tokens = Given::from(Serde(&self.tokens));
        let given = context! { messages => Given::from(Serde(messages)), add_generation_prompt => open, ..tokens };
        template.render(given).map_err(|error| {
            let detail = error.detail().unwrap_or("").to_owned();
            anyhow::Error::from(error).context(format!("the chat template: {detail}"))
        })
    }
}

fn named(config: &Value) -> Option<String> {
    match config.get("chat_template")? {
        Value::String(text) => Some(text.clone()),
        Value::Array(templates) => {
            let default = templates.iter().find(|template| template["name"] == "default");
            Some(default.or(templates.first())?["template"].as_str()?.to_owned())
        }
        _ => None,
    }
}
