// UNTESTED: written against the documented API of onnxruntime-android, never compiled or run. Check it with the kit's fixtures.
//   implementation("com.microsoft.onnxruntime:onnxruntime-android:1.20.0")
package com.example.clipling

import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtSession
import android.graphics.Bitmap
import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.FloatBuffer
import java.nio.LongBuffer
import kotlin.math.exp
import org.json.JSONObject

/** An exported folder. Files must lie in the app's storage, not inside of the APK. */
class Model(folder: File) : AutoCloseable {
    private val environment = OrtEnvironment.getEnvironment()
    private val manifest = JSONObject(File(folder, "clipling.json").readText())
    private val image = open(folder, "image")
    private val text = open(folder, "text")
    val logitScale = manifest.getDouble("logit_scale")

    private fun open(folder: File, side: String): OrtSession {
        val file = manifest.getJSONObject(side).getJSONObject("files").getString("fp32")
        return environment.createSession(File(folder, file).path, OrtSession.SessionOptions())
    }

    /** A unit row of an upright picture of any size: the graph resizes and normalises. */
    fun encodeImage(bitmap: Bitmap): FloatArray {
        val argb = IntArray(bitmap.width * bitmap.height)
        bitmap.getPixels(argb, 0, bitmap.width, 0, 0, bitmap.width, bitmap.height)
        val rgb = ByteBuffer.allocateDirect(argb.size * 3).order(ByteOrder.nativeOrder())
        for (pixel in argb) {
            rgb.put((pixel shr 16).toByte()).put((pixel shr 8).toByte()).put(pixel.toByte())
        }
        rgb.rewind()
        val shape = longArrayOf(1, bitmap.height.toLong(), bitmap.width.toLong(), 3)
        return OnnxTensor.createTensor(environment, rgb, shape, OnnxJavaType.UINT8).use { row(image, "pixels", it) }
    }

    /** A unit row of the token ids of one text, with the start and end ids. */
    fun encodeTokens(ids: LongArray): FloatArray {
        val side = manifest.getJSONObject("text")
        val length = if (side.getBoolean("fixed_length")) side.getInt("context_length") else ids.size
        val row = LongArray(length) { if (it < ids.size) ids[it] else side.getLong("pad") }
        val shape = longArrayOf(1, length.toLong())
        return OnnxTensor.createTensor(environment, LongBuffer.wrap(row), shape).use { row(text, "tokens", it) }
    }

    private fun row(session: OrtSession, name: String, value: OnnxTensor): FloatArray =
        session.run(mapOf(name to value)).use { result ->
            val buffer: FloatBuffer = (result.get("embedding").get() as OnnxTensor).floatBuffer
            FloatArray(buffer.remaining()).also { buffer.get(it) }
        }

    /** The probability of each text: softmax of logit_scale * cosine. */
    fun probabilities(image: FloatArray, texts: List<FloatArray>): List<Double> {
        val logits = texts.map { text -> logitScale * image.indices.sumOf { (image[it] * text[it]).toDouble() } }
        val parts = logits.map { exp(it - logits.max()) }
        return parts.map { it / parts.sum() }
    }

    override fun close() {
        image.close()
        text.close()
    }
}
